"""How the tensors and the config of one kind of model become those of a GGUF file.

A :class:`Conversion` is a table: a tensor's name as its makers write it -> its name in a GGUF file. Most values stay as
they are; a *change* turns the array of one tensor into the array that is written. Matrices come to it in the words they
are stored in (float32, float16, or uint16 for BF16), so it may move numbers and not reckon with them; vectors as
float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ollama_zmq.convert.checkpoint import Array, Checkpoint
from ollama_zmq.convert.config import CheckpointConfig
from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf_writer import NewTensor, Value
from ollama_zmq.formats.quants import QuantType

Change = Callable[[Array, CheckpointConfig], Array]
Parts = tuple[tuple[str, Change], ...]
Names = dict[str, str | Parts]

MAX_SHOWN = 120
OUTER = (
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.",
    "transformer.",
    "gpt_neox.",
    "bert.",
)
BESIDE_TEXT = re.compile(
    r"(model\.)?(vision_|visual\.|multi_modal_projector|embed_vision|audio_|embed_audio|mtp\.)|"
    r".*(rotary_emb\.inv_freq|\.masked_bias|\.attn\.bias|position_ids)$"
)
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
GLOBALS: Names = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Conversion:
    """A kind of model.

    Attributes:
        architecture: its name in a GGUF file.
        keys: reads the config and gives the keys of the header, without the architecture in front.
        layer: names within a layer, without ``.weight`` and ``.bias`` -> names within ``blk.<i>``. ``X`` is the number
            of an expert; a name with a suffix other than those two stands for itself, on both sides.
        globals: the same of tensors outside the layers.
        changes: names that are written, without or with ``.bias`` -> what is done to the values.
        more_keys: further ones that stand in tensors.
        adds: makes tensors that no file holds so, such as the frequency factors that the config describes.
    """

    architecture: str
    keys: Callable[[CheckpointConfig], Mapping[str, Value]]
    layer: Names
    globals: Names = field(default_factory=lambda: GLOBALS)
    changes: Mapping[str, Change] = field(default_factory=dict)
    more_keys: Callable[[Checkpoint], Mapping[str, Value]] = lambda checkpoint: {}
    adds: Callable[[Checkpoint], Sequence[NewTensor]] = lambda checkpoint: ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where the values of a stored tensor go.

    Attributes:
        name: in the GGUF file.
        expert: its number among those that are stacked under this name; None where nothing is stacked.
        change: what is done to the values on the way.
    """

    name: str
    expert: int | None
    change: Change


def unchanged(values: Array, config: CheckpointConfig) -> Array:
    """Return *values*."""
    return values


def interleaved(heads: str) -> Change:
    """Rows of each head in pairs (2i, 2i + 1) in place of halves (i, i + E/2); *heads* is the key of their number."""

    def change(values: Array, config: CheckpointConfig) -> Array:
        n_heads = config.integer(heads, "num_attention_heads")
        return values.reshape(n_heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)

    return change


def plus_one(values: Array, config: CheckpointConfig) -> Array:
    """Return *values* + 1: the weight of a norm that its makers store as the distance from 1."""
    return values + np.float32(1)


def first_half(values: Array, config: CheckpointConfig) -> Array:
    """Return the first half of the rows."""
    return values[..., : values.shape[-2] // 2, :]


def second_half(values: Array, config: CheckpointConfig) -> Array:
    """Return the second half of the rows."""
    return values[..., values.shape[-2] // 2 :, :]


def places_of(conversion: Conversion, name: str) -> tuple[Place, ...]:
    """Where the stored tensor *name* goes; nowhere if it is no part of the text model.

    Raises:
        ModelFileError: the conversion does not know it.
    """
    if BESIDE_TEXT.match(name) or "/" in name:
        return ()
    inner = next((name.removeprefix(outer) for outer in OUTER if name.startswith(outer)), name)
    head, layer, rest = _within_layer(inner)
    names = conversion.layer if layer is not None else conversion.globals
    numbers = [int(number) for number in NUMBER.findall(rest)]
    pattern = NUMBER.sub("X", rest)
    found, suffix = names.get(pattern), ""
    if found is None:
        pattern, _, suffix = pattern.rpartition(".")
        found = names.get(pattern) if suffix in ("weight", "bias") else None
    if found is None:
        raise ModelFileError(
            f"tensor {name[:MAX_SHOWN]!r} is no part of a {conversion.architecture!r} model as it is known here",
            tensor=name,
        )
    parts = ((found, unchanged),) if isinstance(found, str) else found
    return tuple(_place(conversion, head, short, suffix, numbers, change) for short, change in parts)


def _within_layer(inner: str) -> tuple[str, int | None, str]:
    """``blk.<i>.``, i and the name within the layer; nothing, None and the name outside of layers."""
    match = re.match(r"(?:encoder\.)?(?:layers?|h|blocks)\.(\d+)\.(.+)", inner)
    return (f"blk.{int(match[1])}.", int(match[1]), match[2]) if match else ("", None, inner)


def _place(conversion: Conversion, head: str, short: str, suffix: str, numbers: list[int], change: Change) -> Place:
    of_this = conversion.changes.get(f"{short}.{suffix}" if suffix == "bias" else short)
    full = f"{head}{short}.{suffix}" if suffix else f"{head}{short}"
    return Place(full, numbers[0] if numbers else None, _one_after_other(change, of_this) if of_this else change)


def _one_after_other(first: Change, second: Change) -> Change:
    return lambda values, config: second(first(values, config), config)


def as_float32(values: Array) -> Array:
    """Return *values* (float32, float16, or uint16 with the bits of BF16) as float32."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def float32_tensor(name: str, values: Array) -> NewTensor:
    """Return *values* as a tensor to be written."""
    content = np.ascontiguousarray(values, np.float32)
    return NewTensor(name, QuantType.F32, content.shape, lambda: [content.data.cast("B")])
