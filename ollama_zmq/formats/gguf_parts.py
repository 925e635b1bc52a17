"""A model in several GGUF files, ``NAME-00001-of-00003.gguf``, put together into one.

    split.no              number of the part, from 0
    split.count           how many there are
    split.tensors.count   tensors of all parts together

The first part has the keys of the model; what the others repeat is not looked at.

Source: llama.cpp, ``tools/gguf-split``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf import GgufFile, open_gguf
from ollama_zmq.formats.gguf_writer import Bytes, NewTensor, gguf_chunks

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
CHUNK_NBYTES = 16 << 20


def is_part(file: GgufFile) -> bool:
    """Whether *file* is one of several."""
    count = file.metadata.get(COUNT)
    return isinstance(count, int) and count > 1


def joined(paths: Mapping[str, Path]) -> Iterator[Bytes]:
    """Yield the one GGUF file that the parts at *paths*, by the names their owner knows, are of; all is checked first.

    Raises:
        ModelFileError: a part is damaged, missing or there twice, or belongs to another model; it is named.
    """
    with ExitStack() as stack:
        parts: dict[int, tuple[str, GgufFile]] = {}
        for name, path in paths.items():
            try:
                file = stack.enter_context(open_gguf(path))
            except ModelFileError as error:
                raise ModelFileError(str(error).replace(str(path), name), **error.facts) from None
            _add(parts, name, file, len(paths))
        tensors = _tensors(parts)
        first = parts[0][1].metadata
        metadata = {key: first[key] for key in first if key not in (NUMBER, COUNT, TENSORS)}
        yield from gguf_chunks(metadata, tensors)  # type: ignore[arg-type]  # a header holds what a header may hold


def _add(parts: dict[int, tuple[str, GgufFile]], name: str, file: GgufFile, n_files: int) -> None:
    number, count = file.metadata.get(NUMBER), file.metadata.get(COUNT)
    if type(number) is not int or type(count) is not int or not 0 <= number < count:
        raise ModelFileError(f"{name}: {NUMBER} is {number!r:.40} of {COUNT} {count!r:.40}: it is no part of a model")
    if number in parts:
        raise ModelFileError(f"{name}: part {number + 1} of {count} is there twice, as {parts[number][0]} too")
    first_name, first = next(iter(parts.values()), (name, file))
    if count != first.metadata.get(COUNT) or file.metadata.get(TENSORS) != first.metadata.get(TENSORS):
        raise ModelFileError(f"{name}: a part of another model than {first_name}")
    parts[number] = name, file
    if len(parts) == n_files and n_files < count:
        missing = ", ".join(str(one + 1) for one in range(count) if one not in parts)
        raise ModelFileError(f"{first_name}: of {count} parts number {missing:.80} missing")


def _tensors(parts: Mapping[int, tuple[str, GgufFile]]) -> list[NewTensor]:
    made: dict[str, NewTensor] = {}
    for _, (name, file) in sorted(parts.items()):
        for tensor in file.tensors.values():
            if tensor.name in made:
                raise ModelFileError(f"{name}: tensor {tensor.name!r} stands in another part too", tensor=tensor.name)
            chunks = partial(_chunks, file, tensor.name)
            made[tensor.name] = NewTensor(tensor.name, tensor.type, tensor.shape, chunks)
    name, file = parts[0]
    wanted = file.metadata.get(TENSORS)
    if wanted != len(made):
        raise ModelFileError(f"{name}: {TENSORS} is {wanted!r:.40}, but the parts have {len(made)} tensors")
    return list(made.values())


def _chunks(file: GgufFile, name: str) -> Iterator[memoryview]:
    data = file.data(name)
    for start in range(0, len(data), CHUNK_NBYTES):
        yield data[start : start + CHUNK_NBYTES]
