"""The models on this machine, in Ollama's layout, so that a store written by Ollama opens here and the reverse.

    <root>/manifests/<host>/<namespace>/<model>/<tag>     what a model consists of
    <root>/blobs/sha256-<64 hex>                          its layers

Names come from :mod:`ollama_zmq.store.names` and digests from :mod:`ollama_zmq.store.blobs`, and neither can leave the
root. A model may be deleted or replaced while it is read: a reader sees it whole, as it was or as it is, or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import TypeVar

import structlog

from ollama_zmq.errors import CapacityError, ModelFileError, ModelNotFound, OllamaZmqError, RequestError, StorageError
from ollama_zmq.formats import manifest as records
from ollama_zmq.formats.manifest import ModelConfig
from ollama_zmq.store import garbage
from ollama_zmq.store.blobs import Blobs
from ollama_zmq.store.checkpoints import Convert, one_file
from ollama_zmq.store.create import Check, Recipe, build
from ollama_zmq.store.manifests import Manifests
from ollama_zmq.store.names import ModelName, parse_name
from ollama_zmq.store.stored_model import StoredModel

log = structlog.get_logger()

T = TypeVar("T")

MAX_READS = 8  # of a model that is replaced again and again


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
        self._manifests = Manifests(root / "manifests")
        self._lock = RLock()

    def list(self) -> list[StoredModel]:
        """All models, the last modified first. What cannot be read is logged and left out."""
        models = []
        for name in self._manifests.names():
            try:
                models.append(self.get(name))
            except ModelNotFound:  # another has deleted it since
                continue
            except OllamaZmqError as error:
                log.warning("manifest.rejected", model=name.short, error=str(error))
        return sorted(models, key=lambda model: model.modified, reverse=True)

    def get(self, name: str | ModelName) -> StoredModel:
        """The model called *name*, in whatever case it is written.

        Raises:
            ModelNotFound: there is none, or no model can have that name.
            ModelFileError: its manifest or config is damaged.
        """
        return self.read(name, lambda model: model)

    def read(self, name: str | ModelName, view: Callable[[StoredModel], T]) -> T:
        """``view(model)`` of the model called *name*; called again when it was replaced while it was looked at.

        Deleting or replacing a model takes away blobs that *view* may not have opened yet.

        Raises:
            ModelNotFound: there is none, or there is none any more, or no model can have that name.
            ModelFileError: its manifest or config is damaged, or a blob of it is missing.
            CapacityError: it is replaced faster than it can be read.
        """
        for _ in range(MAX_READS):
            found = self._find(name)
            raw, modified = self._raw(found, name)
            try:
                return view(self._model(found, raw, modified))
            except ModelFileError:
                if self._raw(found, name)[0] == raw:
                    raise
        raise CapacityError(f"model {_shown(name)!r} was replaced {MAX_READS} times while it was read: try again")

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
            self._remove_unreferenced(made)
            raise

    def _create(
        self, target: ModelName, recipe: Recipe, on_status: Callable[[str], None], check: Check | None
    ) -> StoredModel:
        with self._lock:
            if recipe.from_:
                manifest = self.read(recipe.from_, lambda base: build(self.blobs, recipe, base, on_status, check))
            else:
                manifest = build(self.blobs, recipe, None, on_status, check)
            on_status("writing manifest")
            try:
                self._replace(target, records.encode_manifest(manifest))
            except StorageError:
                small = {layer.digest for layer in manifest.layers if layer.media_type != records.MODEL_TYPE}
                self._remove_unreferenced(small | {manifest.config.digest})
                raise
            on_status("success")
            return self.get(target)

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
                raw, _ = self._manifests.read(self._find(source))
            except ModelNotFound:
                raise ModelNotFound(f'model "{_shown(source)}" not found', model=_shown(source)) from None
            self._replace(target, raw)

    def delete(self, name: str | ModelName) -> ModelName:
        """Remove the model *name* and the blobs that only it names; return its name as the store spelled it.

        Raises:
            ModelNotFound: there is none.
            StorageError: the store cannot be written.
        """
        with self._lock:
            found = self._find(name)
            raw, _ = self._raw(found, name)
            self._manifests.remove(found)
            self._remove_unreferenced(garbage.digests_in(raw))
            return found

    def prune(self, now: float) -> tuple[str, ...]:
        """Delete what nobody names and nobody has touched for an hour; return the names of the files that went.

        *now* is the time in seconds since the epoch. That hour keeps uploads alive until their model is made. What a
        killed process has left half written goes at once.

        Raises:
            StorageError: the store cannot be written.
        """
        if self.keeps_blobs or not self.blobs.folder.is_dir():
            return ()
        with self._lock:
            return garbage.prune(self.blobs, self._manifests, now)

    def resolve(self, name: str | ModelName) -> ModelName:
        """The model's name as the store spells it if it is here, else *name* itself.

        Raises:
            RequestError: no model can have that name.
        """
        wanted = parse_name(name) if isinstance(name, str) else name
        if self._manifests.has(wanted):
            return wanted
        return next((known for known in self._manifests.names() if known.key == wanted.key), wanted)

    def _find(self, name: str | ModelName) -> ModelName:
        try:
            found = self.resolve(name)
        except RequestError:
            found = None
        if found is None or not self._manifests.has(found):
            raise _not_found(name)
        return found

    def _raw(self, found: ModelName, name: str | ModelName) -> tuple[bytes, float]:
        """The manifest of *found* and its time. Raises ModelNotFound of *name*, as it was asked for."""
        try:
            return self._manifests.read(found)
        except ModelNotFound:
            raise _not_found(name) from None

    def _model(self, name: ModelName, raw: bytes, modified: float) -> StoredModel:
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
        """Write the manifest of *name*, then let go of what only the old one named."""
        before: set[str] = set()
        with suppress(ModelNotFound):
            before = garbage.digests_in(self._manifests.read(name)[0])
        self._manifests.replace(name, raw)
        self._remove_unreferenced(before)

    def _remove_unreferenced(self, candidates: set[str]) -> None:
        with self._lock:
            if not self.keeps_blobs:
                garbage.remove_unreferenced(candidates, self.blobs, self._manifests)


def _not_found(name: str | ModelName) -> ModelNotFound:
    return ModelNotFound(f"model '{_shown(name)}' not found", model=_shown(name))


def _shown(name: str | ModelName) -> str:
    return name if isinstance(name, str) else name.short
