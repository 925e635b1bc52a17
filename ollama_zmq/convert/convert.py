"""A checkpoint as the bytes of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ollama_zmq.convert.checkpoint import Checkpoint
from ollama_zmq.convert.encoders import CONVERSIONS as ENCODERS
from ollama_zmq.convert.encoders import FIRST, MEAN, pooling_keys
from ollama_zmq.convert.registry import conversion_of
from ollama_zmq.convert.vocabulary import vocabulary_keys
from ollama_zmq.convert.writing import tensors_of
from ollama_zmq.formats.gguf_writer import Bytes, NewTensor, Value, gguf_chunks
from ollama_zmq.formats.quants import QuantType

FILE_TYPES = {QuantType.F32: 0, QuantType.F16: 1, QuantType.BF16: 32, QuantType.MXFP4: 38}


def converted(files: Mapping[str, Path]) -> Iterator[Bytes]:
    """Yield the GGUF file of the model that *files*, relative names and paths, hold; values keep their types.

    Everything but the tensors' bytes is checked before the first chunk.

    Raises:
        ModelFileError: a file is missing or damaged, or the model is of a kind that is not known; it names the file and
            the tensor or key.
    """
    with Checkpoint(files) as checkpoint:
        conversion = conversion_of(checkpoint.config)
        metadata: dict[str, Value] = {"general.architecture": conversion.architecture}
        keys = {**conversion.keys(checkpoint.config), **conversion.more_keys(checkpoint)}
        if checkpoint.config.model_class in ENCODERS:
            keys |= pooling_keys(checkpoint, MEAN if conversion.architecture != "modern-bert" else FIRST)
        metadata |= {f"{conversion.architecture}.{key}": value for key, value in keys.items()}
        tensors = tensors_of(checkpoint, conversion)
        metadata["general.file_type"] = _file_type(tensors)
        metadata |= vocabulary_keys(checkpoint)
        yield from gguf_chunks(metadata, tensors)


def _file_type(tensors: list[NewTensor]) -> int:
    """The number of the type that most bytes are of."""
    nbytes: dict[QuantType, int] = {}
    for tensor in tensors:
        nbytes[tensor.type] = nbytes.get(tensor.type, 0) + tensor.nbytes
    return FILE_TYPES[max(nbytes, key=nbytes.__getitem__)] if nbytes else 0
