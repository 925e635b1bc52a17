"""The files of a model as its makers publish it: ``config.json``, safetensors in parts, a tokenizer's files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ollama_zmq.convert.config import CONFIG_FILE, CheckpointConfig
from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.foreign import json_value
from ollama_zmq.formats.safetensors import SafetensorsFile, StoredTensor, open_safetensors

Array = npt.NDArray[Any]

WORDS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8}
SUFFIX = ".safetensors"
INDEX = "model.safetensors.index.json"
DENSE = re.compile(r"\d+_Dense/model\.safetensors")  # what follows the pooling of an encoder
REPEATED = ("consolidated",)  # beginnings of files that hold the same tensors under other names
MAX_JSON_NBYTES = 256 << 20
MAX_NAMED = 5


class Checkpoint:
    """An open checkpoint; a context manager. Its tensors are not read before they are asked for.

    Attributes:
        files: relative names and where the files lie, below any folders with such names or as blobs with others.
        tensors: all tensors of all parts by name; behind the name of their folder those of ``2_Dense`` and the like.

    Raises:
        ModelFileError: a file cannot be read or is damaged, a part is missing, or a tensor stands in two of them.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = _below_common_folder(files)
        self.config = CheckpointConfig(self.table(CONFIG_FILE, required=True))
        self.tensors: dict[str, StoredTensor] = {}
        self._parts: dict[str, SafetensorsFile] = {}
        self._open = ExitStack()
        try:
            for name in self._names_of_parts():
                self._add_part(name, "")
            for name in filter(DENSE.fullmatch, self.files):
                self._add_part(name, f"{PurePosixPath(name).parent}/")
        except BaseException:
            self._open.close()
            raise

    def table(self, name: str, *, required: bool = False) -> dict[str, Any]:
        """Return the JSON object in the file called *name*; empty if there is no such file.

        Raises:
            ModelFileError: it is *required* and missing, or no JSON object.
        """
        path = self.files.get(name)
        if path is None:
            if required:
                raise ModelFileError(f"{name} is missing: it belongs to the model's files")
            return {}
        try:
            if path.stat().st_size > MAX_JSON_NBYTES:
                raise ModelFileError(f"{name}: {path.stat().st_size} bytes, at most {MAX_JSON_NBYTES}")
            value = json_value(path.read_bytes())
        except OSError as error:
            raise ModelFileError(f"{name}: cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"{name}: no JSON: {error}") from error
        if not isinstance(value, dict):
            raise ModelFileError(f"{name}: a JSON {type(value).__name__}, expected an object")
        return value

    def values(self, name: str) -> Array:
        """The values of tensor *name* as stored; BF16 as uint16 with its bits. Raises KeyError."""
        stored = self.tensors[name]
        return np.frombuffer(self._parts[name].data(stored.name), WORDS[stored.dtype]).reshape(stored.shape)

    def _names_of_parts(self) -> list[str]:
        """The files that hold the tensors: those that the index names, else all safetensors beside ``config.json``."""
        if INDEX in self.files:
            named = self.table(INDEX).get("weight_map")
            if not isinstance(named, dict) or not all(isinstance(part, str) for part in named.values()):
                raise ModelFileError(f"{INDEX}: weight_map is no table of tensors and files")
            parts = sorted(set(named.values()))
            missing = [part for part in parts if part not in self.files]
            if missing:
                more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
                raise ModelFileError(
                    f"{', '.join(missing[:MAX_NAMED])}{more} missing: {INDEX} names {len(parts)} parts"
                )
            return parts
        found = sorted(
            name for name in self.files if name.endswith(SUFFIX) and "/" not in name and not name.startswith(REPEATED)
        )
        if not found:
            raise ModelFileError(f"no {SUFFIX} file beside {CONFIG_FILE}")
        return found

    def _add_part(self, name: str, folder: str) -> None:
        try:
            part = self._open.enter_context(open_safetensors(self.files[name]))
        except ModelFileError as error:
            raise ModelFileError(str(error).replace(str(self.files[name]), name), **error.facts) from None
        for short, tensor in part.tensors.items():
            full = f"{folder}{short}"
            if full in self._parts:
                raise ModelFileError(f"{name}: tensor {full!r} stands in another part too", tensor=full)
            self._parts[full] = part
            self.tensors[full] = tensor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


def _below_common_folder(files: Mapping[str, Path]) -> dict[str, Path]:
    """*files* by their names below the folder of the ``config.json`` that is nearest the top."""
    configs = [PurePosixPath(name) for name in files if PurePosixPath(name).name == CONFIG_FILE]
    top = min((path.parent for path in configs), key=lambda folder: len(folder.parts), default=PurePosixPath("."))
    names = {name: PurePosixPath(name) for name in files}
    return {str(path.relative_to(top)): files[name] for name, path in names.items() if path.is_relative_to(top)}
