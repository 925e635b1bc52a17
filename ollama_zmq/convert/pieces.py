"""The name of the pre-tokenizer of a ``tokenizer.json``: of those that are known, the one that cuts as it does.

A name stands nowhere in such a file; it holds expressions, steps and flags that may be written in many ways. So one
difficult text is cut by the file's own steps and by each rule we know: the name is that of the rule with the same
pieces. What cuts as none does is refused: another pre-tokenizer gives ids that the model has hardly seen.
"""

# ruff: noqa: RUF001 -- the punctuation of other scripts is meant

from __future__ import annotations

from typing import TYPE_CHECKING

from ollama_zmq.errors import ModelFileError
from ollama_zmq.text.bpe import words
from ollama_zmq.text.pretokenizers import RULES

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

DIFFICULT = (
    "he'sto x'tis I'll we'VE 'tis don'T it'S camelCase HTTPServer's x1 12345678 3.14159 1 22 333 4444  5   66 "
    "¿Qué? naïve Ünïcode e\u0301tude \u0301x مرحبا २०२४ नमस्ते 中文字，测试。日本語カタカナ 한국어 ㄅㄆ "
    "a  b   c    d\t\te \t f\n\n\ng \n h\r\n\r\ni   \n  j\u3000k "
    "=== !!! ?! $5+$6 <|x|> `~^` @user #tag /path/to\n//x\n/ (\"q\") a_b __c__ {}[] 'x'' "
    "end!\n\nnext?\n 😀👍🏽 ∑∫ ½ Ⅷ ① a.b,c;d:e - -- — “q” … <sentinel:12> IMGIMGABZ ǅx\u200dy\xa0z"
)


def pre_tokenizer_name(engine: Engine, *, ignore_merges: bool) -> str:
    """Return the ``tokenizer.ggml.pre`` of *engine*; with *ignore_merges* a word that is a token is taken whole.

    Raises:
        ModelFileError: no rule that is known cuts text as it does.
    """
    cutter = engine.pre_tokenizer
    found = [piece for piece, _ in cutter.pre_tokenize_str(DIFFICULT)] if cutter else [DIFFICULT]
    for names, rules in RULES.items():
        if rules.byte_level and rules.ignore_merges == ignore_merges and words(DIFFICULT, rules) == found:
            return names.split()[0]
    raise ModelFileError("tokenizer.json: its pre_tokenizer cuts text as none of those that are known here")
