"""How text is cut into words before byte pairs are merged, by ``tokenizer.ggml.pre``.

A byte-level BPE never merges across the borders its pre-tokenizer draws; another pre-tokenizer gives valid looking
ids that the model has hardly seen. Hence a name that is not in the table is an error, never a guess.

Each entry is a list of regular expressions (Oniguruma syntax) applied one after the other to the pieces the one
before left; what matches and what lies between matches both become pieces. They are the expressions of the models'
own ``tokenizer.json``; ``(?i:'s|'t)`` is spelled out, since Oniguruma would also take a long s (U+017F) for an s.

``\\s+(?!\\S)`` leaves the last of several blanks to the word behind them. ``\\s+$`` is written ``(?<!\\s)\\s+$``: the
same match, in linear instead of quadratic time on long runs of blanks.
"""

# ruff: noqa: RUF001 -- the punctuation of other scripts is meant

from __future__ import annotations

from dataclasses import dataclass

from ollama_zmq.errors import ModelFileError


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """The rules a pre-tokenizer name stands for.

    Attributes:
        patterns: see the head of this file.
        ignore_merges: a word that is a token is taken whole, whatever the merges say.
        add_bos: put BOS in front unless the file says otherwise.
        groups_digits: numbers are first cut into groups of three from the right, "1234" into "1" and "234". As an
            expression that takes a lookahead over all digits at each of them: quadratic time, so it is done by hand.
        byte_level: tokens are in GPT-2's byte alphabet; otherwise plain text with ``▁`` for a space and <0xXX> bytes.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    groups_digits: bool = False
    byte_level: bool = True


CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
NOT_HAN = r"&&[^\p{Han}]]"  # Oniguruma's intersection of character classes
CJK = "[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK_HAN = "[一-龥ࠀ-一가-퟿]+"
SENTENCE_PIECES = r" ?[^(\s|.,!?…。，、।۔،)]+"
DEEPSEEK_LETTERS = (  # escaped, since many of these characters change under Unicode normalisation
    "[A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943]"
)


def _words(numbers: str, *, mark: str = "", contraction: str = CONTRACTION + "|", tail: str = r"[\r\n]*") -> str:
    """The expression most models share: contractions, words, *numbers*, punctuation, blanks."""
    word = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}{mark}]+"
    return rf"{contraction}{word}|{numbers}| ?[^\s\p{{L}}{mark}\p{{N}}]+{tail}|{BLANKS}"


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = _words(r"\p{N}{1,3}")
QWEN2 = _words(r"\p{N}")
DEEPSEEK3_TAIL = rf"{ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
DEEPSEEK3 = (r"\p{N}{1,3}", CJK, rf"{DEEPSEEK3_TAIL}[\r\n]*|{BLANKS}")
GPT4O = (rf"{CASED_WORDS % ((CONTRACTION + '?',) * 2)}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}",)
KIMI_UPPER, KIMI_LOWER = (letters.removesuffix("]") + NOT_HAN for letters in (UPPER, LOWER))
KIMI_K2 = (
    rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?{KIMI_UPPER}*{KIMI_LOWER}+{CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{KIMI_UPPER}+{KIMI_LOWER}*{CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BLANKS}"
)
YOUTU_SCRIPTS = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"
BLANK_CASCADE = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s{1}"

# One entry per rule; the names that share it, separated by blanks, as they stand in GGUF files.
RULES: dict[str, PreTokenizer] = {
    "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert exaone4 jina-v1-en"
    " jina-v2-code roberta-bpe mpt olmo jais trillion granite-docling": PreTokenizer((GPT2,)),
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": PreTokenizer((r"\p{N}", GPT2)),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizer(
        (LLAMA3,), ignore_merges=True, add_bos=True
    ),
    "dbrx smaug-bpe chatglm-bpe": PreTokenizer((LLAMA3,)),
    "glm4 glm5": PreTokenizer((LLAMA3,), ignore_merges=True),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _words(r"\p{N}+")), ignore_merges=True),
    "jais-2": PreTokenizer((LLAMA3.removesuffix(r"|\s+(?!\S)|\s+") + "|" + BLANK_CASCADE,)),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": PreTokenizer((QWEN2,)),
    "qwen35": PreTokenizer((_words(r"\p{N}", mark=r"\p{M}"),)),
    "ufakzeka": PreTokenizer((_words(r"\p{N}", contraction=""),)),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", QWEN2)),
    "seed-coder": PreTokenizer((_words(r"\p{N}", tail="").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{N}\r\n]+"),)),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizer(
        (
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "exaone-moe": PreTokenizer(
        (
            rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?{DEEPSEEK_LETTERS}+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"(?<!\s)\s+$",
            DEEPSEEK_HAN,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_HAN, r"\p{N}")),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer(DEEPSEEK3),
    "spark2_5": PreTokenizer((*DEEPSEEK3[:2], rf"{DEEPSEEK3_TAIL}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "poro-chat bloom gpt3-finnish": PreTokenizer((SENTENCE_PIECES,)),
    "viking": PreTokenizer((SENTENCE_PIECES, r"\p{N}")),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer(GPT4O),
    "granite-embed-multi-97m": PreTokenizer(GPT4O, ignore_merges=True),
    "tiny_aya cohere2moe": PreTokenizer(GPT4O, groups_digits=True),
    "kimi-k2": PreTokenizer((KIMI_K2,)),
    "tekken": PreTokenizer(
        (rf"{CASED_WORDS % ('', '')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}",),
        ignore_merges=True,
        add_bos=True,
    ),
    "youtu": PreTokenizer(
        (
            YOUTU_SCRIPTS,
            rf"{CASED_WORDS % ((CONTRACTION + '?',) * 2)}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}",
        ),
        ignore_merges=True,
    ),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ),
        add_bos=True,
    ),
    "gemma4": PreTokenizer((r"[^\n]+|[\n]+",), add_bos=True, byte_level=False),
    "sarvam-moe": PreTokenizer((r"[^\n]+|[\n]+",), byte_level=False),
}

PRE_TOKENIZERS = {name: rule for names, rule in RULES.items() for name in names.split()}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The rules called *name*.

    Raises:
        ModelFileError: nobody here knows it.
    """
    rules = PRE_TOKENIZERS.get(name)
    if rules is None:
        raise ModelFileError(
            f"tokenizer.ggml.pre={name!r}: unknown pre-tokenizer; use a newer ollama-zmq or another model", pre=name
        )
    return rules
