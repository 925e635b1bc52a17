"""A checkpoint that was uploaded, safetensors and what belongs to them, made into one GGUF file of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ollama_zmq.errors import ModelFileError, RequestError
from ollama_zmq.store.blobs import Blobs
from ollama_zmq.store.create import check_count, uploaded

SAFETENSORS = ".safetensors"
NAME = "model.gguf"
Convert = Callable[[Mapping[str, Path]], Iterable[bytes | memoryview]]


def is_checkpoint(files: Mapping[str, str]) -> bool:
    """Whether *files*, names and digests, are those of a checkpoint."""
    return any(name.endswith(SAFETENSORS) for name in files)


def convert_files(
    blobs: Blobs, files: Mapping[str, str], convert: Convert, on_status: Callable[[str], None]
) -> dict[str, str]:
    """Put the GGUF file that *convert* makes of *files*, names and digests, into the store; return its name and digest.

    Raises:
        RequestError: a file is not here, or the checkpoint is damaged or of a kind that is not known.
        StorageError: there is no room for it, or the store cannot be written.
    """
    check_count(files)
    digests = {name: uploaded(blobs, name, digest) for name, digest in files.items()}
    on_status("converting model")
    nbytes = sum(blobs.nbytes(digest) for name, digest in digests.items() if name.endswith(SAFETENSORS))
    try:
        with blobs.incoming(nbytes=nbytes) as incoming:
            for chunk in convert({name: blobs.path(digest) for name, digest in digests.items()}):
                incoming.write(chunk)
            return {NAME: incoming.commit().digest}
    except ModelFileError as error:
        raise RequestError(str(error), **error.facts) from error
