"""The models on this machine, in Ollama's layout, so that a store written by Ollama opens here and the reverse.

    <root>/manifests/<host>/<namespace>/<model>/<tag>     what a model consists of
    <root>/blobs/sha256-<64 hex>                          its layers

A manifest is replaced in one step; a blob goes when the last manifest that names it is gone. Names come from
:mod:`ollama_zmq.store.names` and digests from :mod:`ollama_zmq.store.blobs`, and neither can leave the root.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock

import structlog

from ollama_zmq.errors import ModelFileError, ModelNotFound, OllamaZmqError, RequestError, StorageError
from ollama_zmq.formats import manifest as records
from ollama_zmq.formats.manifest import ModelConfig
from ollama_zmq.store.blobs import Blobs, parse_digest
from ollama_zmq.store.checkpoints import Convert, one_file
from ollama_zmq.store.create import Check, Recipe, build
from ollama_zmq.store.disk import INCOMING, create_incoming, explained, is_file, is_left_over
from ollama_zmq.store.names import ModelName, name_of_path, parse_name
from ollama_zmq.store.stored_model import StoredModel

log = structlog.get_logger()

KEEP_UNREFERENCED_S = 3600.0
_ANY_DIGEST = re.compile(r"sha256:[0-9a-fA-F]{64}")
_BLOB_NAME = re.compile(r"sha256-[0-9a-f]{64}")


class Store:
    """The models below one folder. Its methods may be called from several threads.

    Attributes:
        root: the folder, ``~/.ollama/models`` as a rule; made when something is written.
        keeps_blobs: True if blobs that nobody names are never deleted (``OLLAMA_NOPRUNE``).
    """

    def __init__(self, root: Path, *, keeps_blobs: bool = False) -> None:
        self.root = root
        self.keeps_blobs = keeps_blobs
        self.blobs = Blobs(root / "blobs")
        self._manifests = root / "manifests"
        self._lock = RLock()

    def list(self) -> list[StoredModel]:
        """All models, the last modified first. What cannot be read is logged and left out."""
        models = []
        for name in self._names():
            try:
                models.append(self._read(name))
            except OllamaZmqError as error:
                log.warning("manifest.rejected", model=name.short, error=str(error))
        return sorted(models, key=lambda model: model.modified, reverse=True)

    def get(self, name: str | ModelName) -> StoredModel:
        """The model called *name*, in whatever case it is written.

        Raises:
            ModelNotFound: there is none, or no model can have that name.
            ModelFileError: its manifest or config is damaged.
        """
        return self._read(self._find(name))

    def create(
        self,
        name: str | ModelName,
        recipe: Recipe,
        on_status: Callable[[str], None] = lambda _: None,
        check: Check | None = None,
        convert: Convert | None = None,
    ) -> StoredModel:
        """Make or replace the model *name*; ``on_status`` is told what Ollama's clients are shown.

        ``check(file, template)`` refuses a model that cannot run, before it gets its name; ``convert`` makes a GGUF
        file of a checkpoint.

        Raises:
            RequestError: the name or the recipe is wrong, or a file it is made from is none that can run.
            ModelNotFound: the model it is made from is not here.
            StorageError: the disk does not take it; nothing new stays in the store.
        """
        target, made = self.resolve(name), set[str]()
        if not recipe.from_ and (files := one_file(self.blobs, recipe.files, convert, on_status)):
            recipe, made = replace(recipe, files=files), set(files.values())
        try:
            return self._create(target, recipe, on_status, check)
        except OllamaZmqError:
            with self._lock:
                self._remove_unreferenced(made)
            raise

    def _create(
        self, target: ModelName, recipe: Recipe, on_status: Callable[[str], None], check: Check | None
    ) -> StoredModel:
        with self._lock:
            base = self.get(recipe.from_) if recipe.from_ else None
            manifest = build(self.blobs, recipe, base, on_status, check)
            on_status("writing manifest")
            try:
                self._replace(target, records.encode_manifest(manifest))
            except StorageError:
                small = {layer.digest for layer in manifest.layers if layer.media_type != records.MODEL_TYPE}
                self._remove_unreferenced(small | {manifest.config.digest})
                raise
            on_status("success")
            return self._read(target)

    def copy(self, source: str | ModelName, destination: str | ModelName) -> None:
        """Give the model *source* a second name.

        Raises:
            ModelNotFound: *source* is not here.
            RequestError: *destination* is no name.
            StorageError: the store cannot be written.
        """
        with self._lock:
            target = self.resolve(destination)
            try:
                raw = self._raw(self._path(self._find(source)))
            except ModelNotFound:
                raise ModelNotFound(f'model "{_shown(source)}" not found', model=_shown(source)) from None
            self._replace(target, raw)

    def delete(self, name: str | ModelName) -> None:
        """Remove the model *name* and the blobs that only it names. Raises ModelNotFound, StorageError."""
        with self._lock:
            path = self._path(self._find(name))
            candidates = _digests(self._raw(path))
            self._unlink(path)
            self._remove_empty_folders(path.parent)
            self._remove_unreferenced(candidates)

    def prune(self, now: float) -> tuple[str, ...]:
        """Delete what nobody names and nobody has touched for an hour; return the names of the files that went.

        *now* is the time in seconds since the epoch. That hour keeps uploads alive until their model is made. What a
        killed process has left half written goes at once.

        Raises:
            StorageError: the store cannot be written.
        """
        if self.keeps_blobs or not self.blobs.folder.is_dir():
            return ()
        removed = []
        with self._lock:
            referenced = self._referenced()
            for path in sorted(self.blobs.folder.iterdir()):
                known = _BLOB_NAME.fullmatch(path.name) and path.name.replace("-", ":") in referenced
                if not known and path.is_file() and _is_waste(path, now):
                    self._unlink(path)
                    removed.append(path.name)
            for path in sorted(self._manifests.glob(f"*/*/*/.*{INCOMING}")):
                if is_left_over(path):
                    self._unlink(path)
                    removed.append(path.name)
        return tuple(removed)

    def resolve(self, name: str | ModelName) -> ModelName:
        """The model's name as the store spells it if it is here, else *name* itself.

        Raises:
            RequestError: no model can have that name.
        """
        wanted = parse_name(name) if isinstance(name, str) else name
        if is_file(self._path(wanted)):
            return wanted
        return next((known for known in self._names() if known.key == wanted.key), wanted)

    def _find(self, name: str | ModelName) -> ModelName:
        try:
            found = self.resolve(name)
        except RequestError:
            found = None
        if found is None or not is_file(self._path(found)):
            raise ModelNotFound(f"model '{_shown(name)}' not found", model=_shown(name))
        return found

    def _path(self, name: ModelName) -> Path:
        return self._manifests / name.path

    def _names(self) -> Iterator[ModelName]:
        for path in sorted(self._manifests.glob("*/*/*/*")):
            name = name_of_path(path.relative_to(self._manifests))
            if name is not None and is_file(path):
                yield name

    def _read(self, name: ModelName) -> StoredModel:
        path = self._path(name)
        try:
            raw, modified = self._raw(path), path.stat().st_mtime
        except FileNotFoundError:
            raise ModelNotFound(f"model '{name.short}' not found", model=name.short) from None
        manifest = records.decode_manifest(raw, f"manifest of model {name.short!r}")
        config = ModelConfig()
        if manifest.config.digest:
            config = records.decode_config(self.blobs.read(manifest.config.digest), f"config of model {name.short!r}")
        return StoredModel(
            name=name,
            manifest=manifest,
            config=config,
            digest=hashlib.sha256(raw).hexdigest(),
            size=manifest.nbytes,
            modified=datetime.fromtimestamp(modified, UTC),
            blobs=self.blobs,
        )

    def _replace(self, name: ModelName, raw: bytes) -> None:
        """Write the manifest of *name* in one step, then let go of what only the old one named."""
        path = self._path(name)
        before = _digests(self._raw(path)) if is_file(path) else set()
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
        self._remove_unreferenced(before)

    def _raw(self, path: Path) -> bytes:
        """A manifest's bytes. Raises FileNotFoundError, or ModelFileError if it cannot be read."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}", path=str(path)) from error

    def _unlink(self, path: Path) -> None:
        with explained(path):
            path.unlink(missing_ok=True)

    def _remove_unreferenced(self, candidates: set[str]) -> None:
        if self.keeps_blobs or not candidates:
            return
        for digest in candidates - self._referenced():
            self.blobs.remove(digest)

    def _referenced(self) -> set[str]:
        """Every digest that a manifest names, readable or not, its own, and those in the manifests it lists."""
        found: set[str] = set()
        for name in self._names():
            raw = self._raw(self._path(name))
            named = _digests(raw) | {f"sha256:{hashlib.sha256(raw).hexdigest()}"}
            if records.MANIFEST_LIST_TYPE.encode() in raw:
                named |= {
                    inner for digest in named if self.blobs.has(digest) for inner in _digests(self.blobs.read(digest))
                }
            found |= named
        return found

    def _remove_empty_folders(self, folder: Path) -> None:
        with suppress(OSError):
            while folder != self._manifests:
                folder.rmdir()
                folder = folder.parent


def _is_waste(path: Path, now: float) -> bool:
    """Whether a file among the blobs that no manifest names is to go."""
    return is_left_over(path) if path.name.endswith(INCOMING) else now - path.stat().st_mtime > KEEP_UNREFERENCED_S


def _digests(raw: bytes) -> set[str]:
    return {parse_digest(text) for text in _ANY_DIGEST.findall(raw.decode("utf-8", "replace"))}


def _shown(name: str | ModelName) -> str:
    return name if isinstance(name, str) else name.short
