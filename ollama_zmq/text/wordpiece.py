"""WordPiece vocabularies (BERT, all-MiniLM, nomic-embed): of each word the longest token, then of its rest, and so on.

    text -> accents dropped, lower case, control characters dropped
         -> words: split at white space; each punctuation mark, ASCII symbol and CJK ideograph is one
         -> longest match first; a word with a rest that no token matches is one unknown token

A GGUF file writes ``▁`` in front of what begins a word and nothing in front of what goes on; the models' own files
write ``##`` in front of what goes on. Segmenting is done by the ``tokenizers`` library, for which the one is turned
into the other. A word of more than 100 characters is unknown, as in the models' own tokenizers; llama.cpp segments it.

Source: Devlin et al. 2019, "BERT", NAACL, and its ``tokenization.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ollama_zmq.text.vocabulary import HIDDEN, Defaults, Vocabulary, flag

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

DEFAULTS = Defaults(bos_id=101, eos_id=102, unk_id=100, add_bos=True, add_eos=True)
SPACE = "▁"
GOES_ON = "##"


class WordPiece:
    """Segments text into the longest tokens of its vocabulary."""

    def __init__(self, vocabulary: Vocabulary, metadata: Mapping[str, object]) -> None:
        lowercase = flag(metadata, "tokenizer.ggml.normalizer.lowercase", True)
        strip_accents = flag(metadata, "tokenizer.ggml.normalizer.strip_accents", lowercase)
        self._engine = _engine(vocabulary, lowercase=lowercase, strip_accents=strip_accents)

    def token_ids(self, text: str, *, after_special: bool) -> list[int]:
        """Token ids of plain *text*; a special token before it changes nothing."""
        found: list[int] = self._engine.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return found

    def piece(self, text: str) -> bytes:
        """The bytes a normal token with this *text* stands for: a beginning has a space in front."""
        return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")


def _engine(vocabulary: Vocabulary, *, lowercase: bool, strip_accents: bool) -> Engine:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    unknown = vocabulary.texts[vocabulary.unk_id or 0]
    pieces = {
        text.removeprefix(SPACE) if text.startswith(SPACE) else GOES_ON + text: token_id
        for text, token_id in vocabulary.ids.items()
        if not vocabulary.attributes[token_id] & HIDDEN
    }
    engine = Tokenizer(models.WordPiece(pieces | {unknown: vocabulary.unk_id or 0}, unk_token=unknown))
    engine.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return engine
