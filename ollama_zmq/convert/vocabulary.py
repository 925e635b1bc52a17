"""The tokens of a checkpoint as the ``tokenizer.ggml.*`` keys of a GGUF file.

    tokenizer.json   byte pairs -> gpt2, or llama where spaces are written as ▁; WordPiece -> bert; Unigram -> t5
    tokenizer.model  SentencePiece: llama, or t5 for Unigram; counts where it is there beside byte pairs with ▁

``tokenizer_config.json`` names the special tokens and the chat template, ``generation_config.json`` more ends. A
checkpoint without a tokenizer becomes a model that runs on token ids alone.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ollama_zmq.convert.checkpoint import Checkpoint
from ollama_zmq.convert.common import Pairs
from ollama_zmq.convert.pieces import pre_tokenizer_name
from ollama_zmq.convert.sentencepiece import UNIGRAM, read_sentencepiece
from ollama_zmq.convert.special_tokens import engine_of, special_keys, template_keys
from ollama_zmq.errors import ModelFileError

if TYPE_CHECKING:
    pass

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # ``tokenizer.ggml.token_type``
SPACE, GOES_ON = "▁", "##"
MAX_TOKENS = 1 << 21


def vocabulary_keys(checkpoint: Checkpoint) -> Pairs:
    """Return the keys of the header that describe tokens and the chat template.

    Raises:
        ModelFileError: a file of the tokenizer is damaged, or of a kind that is not known.
    """
    settings = checkpoint.table("tokenizer_config.json")
    if "tokenizer.json" in checkpoint.files:
        found = _of_tokenizer_json(checkpoint, settings)
    elif "tokenizer.model" in checkpoint.files:
        found = _of_sentencepiece(checkpoint, settings)
    else:
        return {"tokenizer.ggml.model": "none"}
    return found | template_keys(checkpoint, settings)


def _of_tokenizer_json(checkpoint: Checkpoint, settings: dict[str, Any]) -> Pairs:
    file = checkpoint.table("tokenizer.json")
    model = file.get("model")
    if not isinstance(model, dict):
        raise ModelFileError("tokenizer.json: it has no model")
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    match kind:
        case "WordPiece":
            return _wordpiece(checkpoint, file, model, settings)
        case "Unigram":
            return _unigram(checkpoint, file, model, settings)
        case "BPE" if _writes_spaces(model):
            if "tokenizer.model" in checkpoint.files:
                return _of_sentencepiece(checkpoint, settings)
            return _scored_byte_pairs(checkpoint, file, model, settings)
        case "BPE":
            return _byte_pairs(checkpoint, file, model, settings)
    raise ModelFileError(f"tokenizer.json: a model of type {kind!r:.40}, expected BPE, WordPiece or Unigram")


def _writes_spaces(model: dict[str, Any]) -> bool:
    """Whether tokens are text with ▁ for a space, and bytes such as <0x0A>, in place of GPT-2's alphabet."""
    return model.get("byte_fallback") is True or "<0x0A>" in _table(model)


def _table(model: dict[str, Any]) -> dict[str, int]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(i) is int and 0 <= i < MAX_TOKENS for i in vocab.values()):
        raise ModelFileError("tokenizer.json: model.vocab is no table of tokens and numbers")
    return vocab


def _tokens(checkpoint: Checkpoint, file: dict[str, Any], ids: dict[str, int]) -> tuple[list[str], list[int]]:
    """Texts and kinds of all tokens by id; what no table names is unused, up to the rows of the embedding."""
    added = file.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(one, dict) and isinstance(one.get("content"), str) and type(one.get("id")) is int for one in added
    ):
        raise ModelFileError("tokenizer.json: added_tokens is no list of tokens with content and id")
    known = {token_id: (text, NORMAL) for text, token_id in ids.items()}
    known |= {one["id"]: (one["content"], CONTROL if one.get("special") else USER_DEFINED) for one in added}
    n_tokens = max(checkpoint.config.integer("vocab_size", default=0), max(known, default=-1) + 1)
    if not known or min(known) < 0 or n_tokens > MAX_TOKENS:
        raise ModelFileError(f"tokenizer.json: {len(known)} tokens with ids up to {n_tokens - 1}")
    pairs = [known.get(i, (f"[PAD{i}]", UNUSED)) for i in range(n_tokens)]
    return [text for text, _ in pairs], [kind for _, kind in pairs]


def _byte_pairs(checkpoint: Checkpoint, file: dict[str, Any], model: dict[str, Any], settings: dict[str, Any]) -> Pairs:
    texts, kinds = _tokens(checkpoint, file, _table(model))
    name = pre_tokenizer_name(engine_of(checkpoint), ignore_merges=model.get("ignore_merges") is True)
    found: Pairs = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(model)],
    }
    return found | special_keys(checkpoint, texts, settings)


def _scored_byte_pairs(
    checkpoint: Checkpoint, file: dict[str, Any], model: dict[str, Any], settings: dict[str, Any]
) -> Pairs:
    """Byte pairs with ▁, as SentencePiece: the score of a token is minus the rank of the first merge that makes it."""
    texts, kinds = _tokens(checkpoint, file, _table(model))
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(model)):
        ranks.setdefault(left + right, rank)
    last = len(ranks)
    kinds = [BYTE if _is_byte(text) else kind for text, kind in zip(texts, kinds, strict=True)]
    normalizer, pre = file.get("normalizer"), file.get("pre_tokenizer")
    found: Pairs = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [-float(ranks.get(text, last)) for text in texts],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": _puts_space(normalizer) or _puts_space(pre),
    }
    return found | special_keys(checkpoint, texts, settings)


def _merges(model: dict[str, Any]) -> Sequence[tuple[str, str]]:
    merges = model.get("merges")
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges or ()]
    if not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(half, str) for half in pair) for pair in pairs
    ):
        raise ModelFileError("tokenizer.json: model.merges is no list of pairs")
    return [(left, right) for left, right in pairs]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _puts_space(step: Any) -> bool:
    """Whether a normalizer or pre-tokenizer, or a step of it, puts a space in front of a text."""
    if not isinstance(step, dict):
        return False
    inner = step.get("normalizers") or step.get("pretokenizers") or ()
    own = step.get("type") == "Prepend" or step.get("prepend_scheme") in ("always", "first")
    return own or step.get("add_prefix_space") is True or any(_puts_space(one) for one in inner)


def _wordpiece(checkpoint: Checkpoint, file: dict[str, Any], model: dict[str, Any], settings: dict[str, Any]) -> Pairs:
    texts, kinds = _tokens(checkpoint, file, _table(model))
    normalizer = file.get("normalizer") or {}
    lowercase = normalizer.get("lowercase", True) if isinstance(normalizer, dict) else True
    written = [_word(text) if kind == NORMAL else text for text, kind in zip(texts, kinds, strict=True)]
    found: Pairs = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": written,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.token_type_count": checkpoint.config.integer("type_vocab_size", default=1),
        "tokenizer.ggml.normalizer.lowercase": lowercase is not False,
    }
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in texts:
        found["tokenizer.ggml.unknown_token_id"] = texts.index(unknown)
    strips = normalizer.get("strip_accents") if isinstance(normalizer, dict) else None
    if isinstance(strips, bool):
        found["tokenizer.ggml.normalizer.strip_accents"] = strips
    return found | special_keys(checkpoint, texts, settings)


def _word(text: str) -> str:
    """A token with ▁ in front of what begins a word, in place of ## in front of what goes on."""
    return text.removeprefix(GOES_ON) if text.startswith(GOES_ON) else SPACE + text


def _unigram(checkpoint: Checkpoint, file: dict[str, Any], model: dict[str, Any], settings: dict[str, Any]) -> Pairs:
    vocab = model.get("vocab")
    if not isinstance(vocab, list) or not all(
        isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], int | float)
        for one in vocab
    ):
        raise ModelFileError("tokenizer.json: model.vocab is no list of tokens and scores")
    texts, kinds = _tokens(checkpoint, file, {text: i for i, (text, _) in enumerate(vocab)})
    scores = [float(score) for _, score in vocab] + [0.0] * (len(texts) - len(vocab))
    if type(unknown := model.get("unk_id")) is int and 0 <= unknown < len(kinds):
        kinds[unknown] = UNKNOWN
    found: Pairs = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.token_type_count": checkpoint.config.integer("type_vocab_size", default=1),
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
    }
    if characters := _characters(file.get("normalizer")):
        found["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(characters, np.uint8).astype(np.int32)
    return found | special_keys(checkpoint, texts, settings)


def _characters(normalizer: Any) -> bytes:
    """The table of characters of a normalizer or of a step of it; empty where there is none."""
    if not isinstance(normalizer, dict):
        return b""
    if isinstance(packed := normalizer.get("precompiled_charsmap"), str):
        try:
            return b64decode(packed, validate=True)
        except ValueError as error:
            raise ModelFileError(f"tokenizer.json: precompiled_charsmap is no base64: {error}") from None
    return next((found for one in normalizer.get("normalizers") or () if (found := _characters(one))), b"")


def _of_sentencepiece(checkpoint: Checkpoint, settings: dict[str, Any]) -> Pairs:
    model = read_sentencepiece(checkpoint.files["tokenizer.model"].read_bytes(), "tokenizer.model")
    texts, kinds = model.texts, model.kinds
    n_tokens = max(checkpoint.config.integer("vocab_size", default=0), len(texts))
    if n_tokens > MAX_TOKENS:
        raise ModelFileError(f"config.json: vocab_size is {n_tokens}, at most {MAX_TOKENS}")
    texts = [*texts, *(f"[PAD{i}]" for i in range(len(texts), n_tokens))]
    kinds = [*kinds, *[UNUSED] * (n_tokens - len(kinds))]
    for text, token_id, special in _added(settings):
        if token_id < n_tokens:
            texts[token_id], kinds[token_id] = text, CONTROL if special else USER_DEFINED
    found: Pairs = {
        "tokenizer.ggml.model": "t5" if model.kind == UNIGRAM else "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [*model.scores, *[-1000.0] * (n_tokens - len(model.scores))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": model.puts_space,
    }
    if model.kind == UNIGRAM:
        found["tokenizer.ggml.remove_extra_whitespaces"] = model.joins_spaces
        if model.characters:
            characters = np.frombuffer(model.characters, np.uint8)
            found["tokenizer.ggml.precompiled_charsmap"] = characters.astype(np.int32)
    return found | special_keys(checkpoint, texts, settings)


def _added(settings: dict[str, Any]) -> list[tuple[str, int, bool]]:
    """Tokens that ``tokenizer_config.json`` adds: text, id and whether it is special."""
    table = settings.get("added_tokens_decoder")
    entries = table.items() if isinstance(table, dict) else ()
    return [
        (one["content"], int(number), one.get("special") is True)
        for number, one in entries
        if number.isdigit() and isinstance(one, dict) and isinstance(one.get("content"), str)
    ]
