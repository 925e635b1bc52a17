"""What a GGUF header says about its tokens: texts, kinds, special ids, and which of them end a generation.

Keys are ``tokenizer.ggml.*``. A file tells the kind of each token (``token_type``), but converters forget: a chat
model whose ``<|im_end|>`` is a normal token would never stop. llama.cpp therefore knows the usual markers by their
text, makes them control tokens and counts them as ends of generation; the same files must behave the same here, so
the lists in markers.py are those of its ``llama_vocab::impl::load``. Where it takes the first marker in hash order,
we take the first in the order of the list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ollama_zmq.errors import ModelFileError
from ollama_zmq.text import markers as known

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE, UNUSED, LSTRIP, RSTRIP = (1 << bit for bit in range(8))
SPECIAL = CONTROL | USER_DEFINED | UNKNOWN  # matched as a whole, before the text is segmented
HIDDEN = CONTROL | UNKNOWN  # matched only with parse_special, shown only on demand

# GGUF token types 0..6: undefined, normal, unknown, control, user defined, unused, byte
ATTRIBUTE_OF_TYPE = np.array([0, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE], np.uint8)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a kind of tokenizer means when the header is silent."""

    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False


@dataclass(slots=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        texts: text of each token as stored: byte-level alphabet, ``▁`` for a space, or a marker.
        ids: id of each text; of equal texts the last.
        attributes: one byte per token, bits as above.
        scores: float per token; empty when the file has none.
        end_ids: tokens after which generation stops.
    """

    texts: list[str]
    ids: dict[str, int]
    attributes: bytearray
    scores: list[float]
    bos_id: int | None = None
    eos_id: int | None = None
    eot_id: int | None = None
    eom_id: int | None = None
    unk_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    end_ids: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object], defaults: Defaults) -> Vocabulary:
        """Read the ``tokenizer.ggml.*`` keys of a GGUF header.

        Raises:
            ModelFileError: no tokens, arrays of other lengths or types than the tokens need.
        """
        texts = string_list(metadata, "tokenizer.ggml.tokens")
        if not all(texts):
            texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]
        vocabulary = cls(
            texts,
            dict(zip(texts, range(len(texts)), strict=True)),
            _attributes(metadata, len(texts)),
            _scores(metadata, len(texts)),
            add_bos=flag(metadata, "tokenizer.ggml.add_bos_token", defaults.add_bos),
            add_eos=flag(metadata, "tokenizer.ggml.add_eos_token", defaults.add_eos),
            add_space_prefix=flag(metadata, "tokenizer.ggml.add_space_prefix", defaults.add_space_prefix),
        )
        vocabulary._find_special_ids(metadata, defaults)
        vocabulary._find_ends(metadata)
        vocabulary._mark_stripping(metadata)
        return vocabulary

    def __len__(self) -> int:
        return len(self.texts)

    def special_ids(self) -> list[int]:
        """Ids of control, user-defined and unknown tokens, longest text first."""
        found = np.flatnonzero(np.frombuffer(self.attributes, np.uint8) & SPECIAL).tolist()
        return sorted(found, key=lambda token_id: -len(self.texts[token_id].encode("utf-8", "surrogateescape")))

    def _id_at(self, metadata: Mapping[str, object], key: str, default: int | None = None) -> int | None:
        token_id = metadata.get(f"tokenizer.ggml.{key}", default)
        return token_id if isinstance(token_id, int) and 0 <= token_id < len(self.texts) else None

    def _control_id(self, token_id: int | None, markers: Iterable[str]) -> int | None:
        """*token_id*, else that of the first of *markers* the vocabulary has, made a control token."""
        if token_id is not None:
            return token_id
        for marker in markers:
            if (found := self.ids.get(marker)) is not None:
                self.attributes[found] |= CONTROL
                return found
        return None

    def _find_special_ids(self, metadata: Mapping[str, object], defaults: Defaults) -> None:
        self.bos_id = self._id_at(metadata, "bos_token_id", defaults.bos_id)
        self.eos_id = self._id_at(metadata, "eos_token_id", defaults.eos_id)
        self.unk_id = self._id_at(metadata, "unknown_token_id", defaults.unk_id)
        self.eot_id = self._control_id(self._id_at(metadata, "eot_token_id"), known.END_OF_TURN)
        self.eom_id = self._control_id(self._id_at(metadata, "eom_token_id"), known.END_OF_MESSAGE)
        for key, old_key, markers in (
            ("fim_pre_token_id", "prefix_token_id", known.FILL_IN_PREFIX),
            ("fim_suf_token_id", "suffix_token_id", known.FILL_IN_SUFFIX),
            ("fim_mid_token_id", "middle_token_id", known.FILL_IN_MIDDLE),
        ):
            if self._id_at(metadata, old_key) is None:
                self._control_id(self._id_at(metadata, key), markers)

    def _find_ends(self, metadata: Mapping[str, object]) -> None:
        fill_in = (
            self._control_id(self._id_at(metadata, "fim_pad_token_id"), known.FILL_IN_PAD),
            self._control_id(self._id_at(metadata, "fim_rep_token_id"), known.FILL_IN_REPOSITORY),
            self._control_id(self._id_at(metadata, "fim_sep_token_id"), known.FILL_IN_SEPARATOR),
        )
        marked = [self.ids[marker] for marker in known.END_OF_GENERATION if marker in self.ids]
        for token_id in marked:
            self.attributes[token_id] |= CONTROL
        for marker in known.HARMONY_VISIBLE:
            if marker in self.ids:
                self.attributes[self.ids[marker]] = USER_DEFINED
        candidates = (*fill_in, *marked, self.eos_id, self.eot_id, self.eom_id)
        ends = {token_id for token_id in candidates if token_id is not None}
        self.end_ids = frozenset(ends - self._false_ends({self.texts[token_id] for token_id in ends}))

    def _false_ends(self, ends: set[str]) -> set[int]:
        """Markers that end nothing beside certain others: harmony's ``<|end|>``, Gemma 4's and PLaMo's ``</s>``."""
        false_ends: set[int] = set()
        harmony = {"<|return|>", "<|call|>"} <= ends or {"<|return|>", "<|calls|>"} <= ends
        solar = "<|flush|>" in ends and bool({"<|call|>", "<|calls|>"} & ends)
        if "<|end|>" in ends and (harmony or solar):
            false_ends.add(self.ids["<|end|>"])
            self.attributes[self.ids["<|end|>"]] = USER_DEFINED
        if "</s>" in ends and {"<|tool_response>", "<|plamo:eos|>"} & ends:
            false_ends.add(self.ids["</s>"])
            self.attributes[self.ids["</s>"]] = NORMAL
        return false_ends

    def _mark_stripping(self, metadata: Mapping[str, object]) -> None:
        """Set which special tokens swallow the white space beside them; a GGUF does not say, so names must."""
        pre, name = (str(metadata.get(key, "")) for key in ("tokenizer.ggml.pre", "general.name"))
        if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
            self._mark(["<mask>"], LSTRIP)
        elif "phi-3" in name.lower() or "phi3" in name.lower():
            kept = {self.ids.get(marker) for marker in ("<unk>", "<s>", "<|endoftext|>")}
            self._mark((self.texts[i] for i in self.special_ids() if i not in kept), RSTRIP)
            self._mark(["</s>"], RSTRIP)
        elif "modern-bert" in name.lower():
            self._mark(["[MASK]"], LSTRIP)

    def _mark(self, markers: Iterable[str], attribute: int) -> None:
        for marker in markers:
            if marker in self.ids:
                self.attributes[self.ids[marker]] |= attribute


def string_list(metadata: Mapping[str, object], key: str) -> list[str]:
    """The array of strings at *key*.

    Raises:
        ModelFileError: it is missing or holds something else.
    """
    values = metadata.get(key)
    if not isinstance(values, list) or not values or not isinstance(values[0], str):
        raise ModelFileError(f"{key}: {type(values).__name__}, expected an array of strings", key=key)
    return values


def flag(metadata: Mapping[str, object], key: str, default: bool) -> bool:
    """The boolean at *key*, or *default* when it is missing.

    Raises:
        ModelFileError: it is not a boolean.
    """
    value = metadata.get(key, default)
    if not isinstance(value, bool | np.bool_):
        raise ModelFileError(f"{key}: {value!r}, expected a boolean", key=key)
    return bool(value)


def _numbers(metadata: Mapping[str, object], key: str, n_tokens: int) -> np.ndarray:
    values = np.asarray(metadata[key])
    if values.ndim != 1 or len(values) < n_tokens or values.dtype.kind not in "iuf":
        found = f"{values.dtype} {list(values.shape)}"
        raise ModelFileError(f"{key}: {found}, expected {n_tokens} numbers, one per token", key=key)
    return values[:n_tokens]


def _attributes(metadata: Mapping[str, object], n_tokens: int) -> bytearray:
    key = "tokenizer.ggml.token_type"
    if key not in metadata:
        return bytearray([NORMAL]) * n_tokens
    kinds = _numbers(metadata, key, n_tokens).astype(np.int64)
    known = (kinds >= 0) & (kinds < len(ATTRIBUTE_OF_TYPE))
    return bytearray(ATTRIBUTE_OF_TYPE[np.where(known, kinds, 0)].tobytes())


def _scores(metadata: Mapping[str, object], n_tokens: int) -> list[float]:
    key = "tokenizer.ggml.scores"
    return _numbers(metadata, key, n_tokens).astype(np.float32).tolist() if key in metadata else []
