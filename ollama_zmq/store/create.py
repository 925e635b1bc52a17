"""A new model from uploaded GGUF files or from a model that is here, with some of its layers replaced.

What a recipe does not mention stays as the base model has it. Parameters are laid over the base's one by
one; a template, system prompt, license list or message list replaces the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import msgspec

from ollama_zmq.errors import ModelFileError, OllamaZmqError, OpError, RequestError
from ollama_zmq.formats import manifest as records
from ollama_zmq.formats.gguf import GgufFile, open_gguf
from ollama_zmq.formats.manifest import Layer, Manifest, ModelConfig, RootFs, encode_json
from ollama_zmq.formats.modelfile import ChatMessage
from ollama_zmq.formats.options import Options, merge_options
from ollama_zmq.formats.quants import file_type_name, parameter_size
from ollama_zmq.printable import whole_characters
from ollama_zmq.store.blobs import Blobs, parse_digest
from ollama_zmq.store.stored_model import StoredModel

Status = Callable[[str], None]
Check = Callable[[GgufFile, str | None], None]

MAX_FILES = 1024  # named by one request: the parts of the largest checkpoints are some 200
ADAPTER_REFUSED = "adapters are not supported yet: merge it into its model first, and leave ADAPTER out"
PROJECTOR_REFUSED = "pictures are not supported yet: leave its FROM out, and the model reads text"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a model is made of. ``from_`` or ``files`` must be given.

    Attributes:
        from_: name of a model that is here.
        files: file names and the digests of the blobs that hold them: one GGUF model.
        adapters: the same for adapters, which are refused.
        parameters: typed values, as :func:`ollama_zmq.formats.options.typed_parameters` makes them.
    """

    from_: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    system: str | None = None
    license: Sequence[str] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)
    messages: Sequence[ChatMessage] = ()
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None


def build(
    blobs: Blobs, recipe: Recipe, base: StoredModel | None, on_status: Status, check: Check | None = None
) -> Manifest:
    """Put the layers of *recipe* into the blobs and return the manifest that names them, not yet written.

    *base* is the model called ``recipe.from_``, if there is such a name. Everything is looked at before a layer is
    written; *check* is given the model's file and its Go template, if it has one, and refuses what cannot run. If
    there is not enough room for all layers, none stays.

    Raises:
        RequestError: no source is given, a name, digest, parameter, template or file is wrong, or is of a kind that is
            not supported.
        ModelFileError: a blob of the base is missing.
        StorageError: the disk does not take it.
    """
    if recipe.adapters:
        raise RequestError(ADAPTER_REFUSED)
    if base is not None:
        layers, config, parameters = _layers_of(base), base.config, dict(base.parameters)
        file_name, path, template = base.name.short, base.gguf_path, recipe.template or base.template
    elif recipe.files:
        layer, config = _layer_of_files(blobs, recipe.files, on_status)
        layers, parameters = [layer], {}
        file_name, path, template = next(iter(recipe.files)), blobs.path(layer.digest), recipe.template
    else:
        raise RequestError("neither 'from' or 'files' was specified")
    parameters |= recipe.parameters
    merge_options(Options(), parameters, None)
    if check is not None:
        with _named(path, file_name), open_gguf(path) as file:
            check(file, template)
    writer = _Writer(blobs, on_status)
    try:
        return _manifest(writer, layers, config, recipe, parameters)
    except OllamaZmqError:
        for digest in writer.created:
            blobs.remove(digest)
        raise


def _layers_of(base: StoredModel) -> list[Layer]:
    """The layers of *base*, which say where they come from."""
    if base.manifest.of_type(records.ADAPTER_TYPE):
        raise RequestError(f"model {base.name.short!r} has an adapter: {ADAPTER_REFUSED}", model=base.name.short)
    return [msgspec.structs.replace(layer, from_=base.name.short) for layer in base.manifest.layers]


class _Writer:
    """Writes small layers.

    Attributes:
        created: digests of those that were not in the store before.
    """

    def __init__(self, blobs: Blobs, on_status: Status) -> None:
        self.created: list[str] = []
        self._blobs = blobs
        self._on_status = on_status

    def layer(self, media_type: str, content: bytes) -> Layer:
        """A layer with *content*, written unless it is there."""
        blob = self._blobs.add([content])
        if blob.created:
            self.created.append(blob.digest)
        self._on_status(f"{'creating new' if blob.created else 'using existing'} layer {blob.digest}")
        return Layer(media_type, blob.digest, blob.nbytes)


def _manifest(
    writer: _Writer, layers: list[Layer], config: ModelConfig, recipe: Recipe, parameters: Mapping[str, object]
) -> Manifest:
    layers = _overlay(writer, layers, recipe, parameters)
    config = msgspec.structs.replace(
        config,
        renderer=recipe.renderer or config.renderer,
        parser=recipe.parser or config.parser,
        requires=recipe.requires or config.requires,
        rootfs=RootFs(diff_ids=tuple(layer.digest for layer in layers)),
    )
    return Manifest(config=writer.layer(records.CONFIG_TYPE, records.encode_config(config)), layers=tuple(layers))


def _overlay(writer: _Writer, layers: list[Layer], recipe: Recipe, parameters: Mapping[str, object]) -> list[Layer]:
    """*layers* with the texts of *recipe* in place of the old ones."""

    def put(media_type: str, *contents: bytes, instead_of: tuple[str, ...] = ()) -> None:
        layers[:] = [layer for layer in layers if layer.media_type not in (media_type, *instead_of)]
        layers.extend(writer.layer(media_type, content) for content in dict.fromkeys(contents))

    if recipe.template:
        put(records.TEMPLATE_TYPE, _utf8(recipe.template), instead_of=(records.PROMPT_TYPE,))
    if recipe.system:
        put(records.SYSTEM_TYPE, _utf8(recipe.system))
    if recipe.license:
        put(records.LICENSE_TYPE, *map(_utf8, recipe.license))
    if parameters:
        put(records.PARAMS_TYPE, encode_json(parameters, sort_keys=True))
    if recipe.messages:
        messages = [{"role": message.role, "content": message.content} for message in recipe.messages]
        put(records.MESSAGES_TYPE, encode_json(messages))
    return layers


def _utf8(text: str) -> bytes:
    return whole_characters(text).encode()


def _layer_of_files(blobs: Blobs, files: Mapping[str, str], on_status: Status) -> tuple[Layer, ModelConfig]:
    """The layer of the one model among *files*, and its config."""
    check_count(files)
    found = [(file_name, uploaded(blobs, file_name, digest)) for file_name, digest in files.items()]
    layers, config = [], ModelConfig()
    for file_name, digest in found:
        on_status("parsing GGUF")
        with blobs.path(digest).open("rb") as raw:
            if raw.read(4) != b"GGUF":
                raise RequestError(f"supplied file was not in GGUF format: {file_name}", file=file_name)
        with _named(blobs.path(digest), file_name), open_gguf(blobs.path(digest)) as file:
            _check_kind(file, file_name)
            config = config_of(file)
        layers.append(Layer(records.MODEL_TYPE, digest, blobs.nbytes(digest)))
        on_status(f"using existing layer {digest}")
    if len(layers) > 1:
        raise RequestError(f"several models at once: {', '.join(files)}")
    return layers[0], config


def check_count(files: Mapping[str, str]) -> None:
    """Refuse more files than any model has. Raises RequestError."""
    if len(files) > MAX_FILES:
        raise RequestError(f"{len(files)} files for one model, at most {MAX_FILES}")


def uploaded(blobs: Blobs, file_name: str, digest: str) -> str:
    """Return the digest of a file that was uploaded, in the form of the store.

    Raises:
        RequestError: *file_name* leads out of its folder, *digest* is none, or the file is not here.
    """
    path = PurePosixPath(file_name)
    if path.is_absolute() or ".." in path.parts or "\\" in file_name:
        raise RequestError(f"file path must be relative: {file_name}", file=file_name)
    digest = parse_digest(digest)
    if not blobs.has(digest):
        raise RequestError(f"blob {digest} of {file_name} is not here: upload it first", digest=digest)
    return digest


@contextmanager
def _named(path: Path, file_name: str) -> Iterator[None]:
    """Raise what is wrong with the file at *path* as the caller's fault, under the name that he knows."""
    try:
        yield
    except (ModelFileError, OpError, RequestError) as error:
        message = str(error)
        known = message.startswith((str(path), file_name))
        message = message.replace(str(path), file_name, 1) if known else f"{file_name}: {message}"
        raise RequestError(message, file=file_name) from error


def _check_kind(file: GgufFile, file_name: str) -> None:
    kind = file.metadata.get("general.type")
    n_parts = file.metadata.get("split.count", 1)
    if kind == "adapter":
        raise RequestError(f"{file_name} is an adapter and no model: {ADAPTER_REFUSED}", file=file_name)
    if kind in ("projector", "mmproj") or file.metadata.get("general.architecture") == "clip":
        raise RequestError(f"{file_name} is a projector: {PROJECTOR_REFUSED}", file=file_name)
    if n_parts not in (0, 1):
        raise RequestError(f"{file_name}: one of {n_parts} parts of a model: give all of them at once", file=file_name)


def config_of(file: GgufFile) -> ModelConfig:
    """What lists say about the model in *file*."""
    file_type = file.metadata.get("general.file_type")
    return ModelConfig(
        model_format="gguf",
        model_family=file.architecture,
        model_families=(file.architecture,),
        model_type=parameter_size(file.n_parameters),
        file_type=file_type_name(file_type if isinstance(file_type, int) else -1),
    )
