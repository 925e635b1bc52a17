"""A checkpoint as the tensors of a GGUF file: found, checked, and read one after the other when they are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ollama_zmq.convert.checkpoint import Array, Checkpoint
from ollama_zmq.convert.conversion import Conversion, Place, as_float32, places_of
from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf_writer import NewTensor
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.formats.safetensors import StoredTensor

TYPES = {"F32": QuantType.F32, "F16": QuantType.F16, "BF16": QuantType.BF16}


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    stored: StoredTensor
    place: Place


def tensors_of(checkpoint: Checkpoint, conversion: Conversion) -> list[NewTensor]:
    """Return what is to be written, in the order of the names in the checkpoint; vectors become float32.

    Raises:
        ModelFileError: a tensor is not known, has an impossible type or shape, or an expert is missing.
    """
    found: dict[str, list[_Source]] = {}
    for name, stored in checkpoint.tensors.items():
        for place in places_of(conversion, name):
            found.setdefault(place.name, []).append(_Source(name, stored, place))
    if checkpoint.config.flag("tie_word_embeddings", default=False) and "token_embd.weight" in found:
        found.pop("output.weight", None)
    made = [_tensor(checkpoint, name, sources) for name, sources in found.items()]
    return [*made, *conversion.adds(checkpoint)]


def _tensor(checkpoint: Checkpoint, name: str, sources: list[_Source]) -> NewTensor:
    sources.sort(key=lambda source: source.place.expert or 0)
    first = sources[0]
    for number, source in enumerate(sources):
        what = f"tensor {source.name!r}"
        if (source.place.expert or 0) != number:
            raise ModelFileError(f"{what}: number {number} of those like it is missing", tensor=source.name)
        if (source.stored.dtype, source.stored.shape) != (first.stored.dtype, first.stored.shape):
            raise ModelFileError(
                f"{what} is {_kind(source.stored)}, but {first.name!r}, which it is stacked with, is "
                f"{_kind(first.stored)}",
                tensor=source.name,
            )
    shape = _changed(checkpoint, first, _zeros(first)).shape
    whole = shape if first.place.expert is None else (len(sources), *shape)
    return NewTensor(name, _type(first), whole, lambda: _chunks(checkpoint, sources))


def _type(source: _Source) -> QuantType:
    """The type that it is written in: vectors are float32. Raises ModelFileError."""
    found = TYPES.get(source.stored.dtype)
    if found is None:
        known = ", ".join(TYPES)
        raise ModelFileError(
            f"tensor {source.name!r} is {source.stored.dtype}; what can be converted is {known}", tensor=source.name
        )
    return QuantType.F32 if len(source.stored.shape) < 2 else found


def _zeros(source: _Source) -> Array:
    """Zeros of the tensor's shape that take no memory, to see what becomes of the shape."""
    word = np.float32 if _type(source) is QuantType.F32 else np.uint16
    return np.broadcast_to(np.zeros((), word), source.stored.shape)


def _kind(stored: StoredTensor) -> str:
    return f"{stored.dtype} {list(stored.shape)}"


def _chunks(checkpoint: Checkpoint, sources: list[_Source]) -> Iterator[memoryview]:
    for source in sources:
        values = checkpoint.values(source.name)
        values = as_float32(values) if values.ndim < 2 else values
        yield np.ascontiguousarray(_changed(checkpoint, source, values)).data.cast("B")


def _changed(checkpoint: Checkpoint, source: _Source, values: Array) -> Array:
    try:
        return source.place.change(values, checkpoint.config)
    except ValueError as error:
        raise ModelFileError(
            f"tensor {source.name!r}, {_kind(source.stored)}, does not fit the config: {error}",
            tensor=source.name,
        ) from None
