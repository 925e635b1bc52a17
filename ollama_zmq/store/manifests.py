"""Manifests: small files named by the model they describe, ``manifests/<host>/<namespace>/<model>/<tag>``.

A manifest is replaced in one step, so that a reader sees the old one or the new one. Another process may take one away
at any moment: what is gone is :class:`ModelNotFound`, whenever that is found out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ollama_zmq.errors import ModelFileError, ModelNotFound
from ollama_zmq.store.disk import INCOMING, create_incoming, explained, is_file, is_left_over
from ollama_zmq.store.names import ModelName, name_of_path


class Manifests:
    """The folder of manifests, made when the first one is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> Iterator[ModelName]:
        """The names of all models, in order."""
        for path in sorted(self.folder.glob("*/*/*/*")):
            name = name_of_path(path.relative_to(self.folder))
            if name is not None and is_file(path):
                yield name

    def has(self, name: ModelName) -> bool:
        """Whether there is a manifest under just this spelling of the name."""
        return is_file(self._path(name))

    def read(self, name: ModelName) -> tuple[bytes, float]:
        """The manifest's bytes, and when it was written, in seconds since the epoch.

        Raises:
            ModelNotFound: there is none.
            ModelFileError: it cannot be read.
        """
        path = self._path(name)
        try:
            with path.open("rb") as file:
                return file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            raise ModelNotFound(f"model '{name.short}' not found", model=name.short) from None
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}", path=str(path)) from error

    def replace(self, name: ModelName, raw: bytes) -> None:
        """Write the manifest of *name* in one step. Raises StorageError."""
        path = self._path(name)
        handle, temporary = create_incoming(path.parent, ".")  # no name begins with a dot
        try:
            with explained(path, len(raw)), os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o644)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            self._remove_empty_folders(path.parent)

    def remove(self, name: ModelName) -> None:
        """Delete the manifest of *name*, if it is there, and the folders that are empty then. Raises StorageError."""
        path = self._path(name)
        with explained(path):
            path.unlink(missing_ok=True)
        self._remove_empty_folders(path.parent)

    def left_over(self) -> list[Path]:
        """The files that killed processes have left half written."""
        return [path for path in sorted(self.folder.glob(f"*/*/*/.*{INCOMING}")) if is_left_over(path)]

    def _path(self, name: ModelName) -> Path:
        return self.folder / name.path

    def _remove_empty_folders(self, folder: Path) -> None:
        with suppress(OSError):
            while folder != self.folder:
                folder.rmdir()
                folder = folder.parent
