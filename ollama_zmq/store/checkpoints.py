"""A model that was uploaded in several files, made into one GGUF: a checkpoint of safetensors, or parts of a GGUF."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ollama_zmq.errors import ModelFileError, RequestError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.formats.gguf_parts import is_part, joined
from ollama_zmq.store.blobs import Blobs
from ollama_zmq.store.create import check_count, uploaded

SAFETENSORS = ".safetensors"
NAME = "model.gguf"
Convert = Callable[[Mapping[str, Path]], Iterable[bytes | memoryview]]


def one_file(
    blobs: Blobs, files: Mapping[str, str], convert: Convert | None, on_status: Callable[[str], None]
) -> dict[str, str] | None:
    """Put one GGUF file of *files*, names and digests, into the store and return its name and digest.

    None if they are neither a checkpoint, which *convert* makes a GGUF file of, nor the parts of one GGUF.

    Raises:
        RequestError: a file is not here, or the model is damaged, incomplete or of a kind that is not known.
        StorageError: there is no room for it, or the store cannot be written.
    """
    check_count(files)
    if convert is not None and any(name.endswith(SAFETENSORS) for name in files):
        on_status("converting model")
        return _made(blobs, files, convert, SAFETENSORS)
    if len(files) > 1 and _are_parts(blobs, files):
        on_status("joining parts")
        return _made(blobs, files, joined, "")
    return None


def _are_parts(blobs: Blobs, files: Mapping[str, str]) -> bool:
    name, digest = next(iter(files.items()))
    try:
        with open_gguf(blobs.path(uploaded(blobs, name, digest))) as file:
            return is_part(file)
    except ModelFileError:  # which is told when the file is looked at
        return False


def _made(blobs: Blobs, files: Mapping[str, str], make: Convert, suffix: str) -> dict[str, str]:
    """The file that *make* makes; it has about as many bytes as the files that end in *suffix*."""
    digests = {name: uploaded(blobs, name, digest) for name, digest in files.items()}
    nbytes = sum(blobs.nbytes(digest) for name, digest in digests.items() if name.endswith(suffix))
    try:
        with blobs.incoming(nbytes=nbytes) as incoming:
            for chunk in make({name: blobs.path(digest) for name, digest in digests.items()}):
                incoming.write(chunk)
            return {NAME: incoming.commit().digest}
    except ModelFileError as error:
        raise RequestError(str(error), **error.facts) from error
