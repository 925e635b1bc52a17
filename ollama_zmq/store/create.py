"""A new model from uploaded GGUF files or from a model that is here, with some of its layers replaced.

What a recipe does not mention stays as the base model has it. Parameters are laid over the base's one by
one; a template, system prompt, license list or message list replaces the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import msgspec

from ollama_zmq.errors import ModelFileError, RequestError
from ollama_zmq.formats import manifest as records
from ollama_zmq.formats.gguf import GgufFile, open_gguf
from ollama_zmq.formats.manifest import Layer, Manifest, ModelConfig, RootFs, encode_json
from ollama_zmq.formats.modelfile import ChatMessage
from ollama_zmq.formats.quants import file_type_name, parameter_size
from ollama_zmq.store.blobs import Blobs, parse_digest
from ollama_zmq.store.stored_model import StoredModel

Status = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a model is made of. ``from_`` or ``files`` must be given.

    Attributes:
        from_: name of a model that is here.
        files: file names and the digests of the blobs that hold them: a GGUF model, perhaps a projector.
        adapters: the same for adapters.
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


def build(blobs: Blobs, recipe: Recipe, base: StoredModel | None, on_status: Status) -> Manifest:
    """Put the layers of *recipe* into the blobs and return the manifest that names them, not yet written.

    *base* is the model called ``recipe.from_``, if there is such a name.

    Raises:
        RequestError: neither source is given, a file name is not relative, a digest is none, or there are two adapters.
        ModelFileError: a blob is missing, or is no GGUF file that we can read.
    """
    if base is not None:
        layers, config, parameters = list(base.manifest.layers), base.config, dict(base.parameters)
    elif recipe.files:
        layers, config = _layers_of_files(blobs, recipe.files, on_status)
        parameters = {}
    else:
        raise RequestError("neither 'from' or 'files' was specified")
    if len(recipe.adapters) > 1:
        raise RequestError("only one adapter is currently supported")
    adapters, _ = _layers_of_files(blobs, recipe.adapters, on_status)
    if any(adapter.media_type != records.ADAPTER_TYPE for adapter in adapters):
        raise RequestError(f"not an adapter: {', '.join(recipe.adapters)}")
    layers += adapters
    layers = _overlay(blobs, layers, recipe, {**parameters, **recipe.parameters}, on_status)
    config = msgspec.structs.replace(
        config,
        renderer=recipe.renderer or config.renderer,
        parser=recipe.parser or config.parser,
        requires=recipe.requires or config.requires,
        rootfs=RootFs(diff_ids=tuple(layer.digest for layer in layers)),
    )
    return Manifest(
        config=_layer(blobs, records.CONFIG_TYPE, records.encode_config(config), on_status), layers=tuple(layers)
    )


def _overlay(
    blobs: Blobs, layers: list[Layer], recipe: Recipe, parameters: Mapping[str, object], on_status: Status
) -> list[Layer]:
    """*layers* with the texts of *recipe* in place of the old ones."""

    def put(media_type: str, *contents: bytes, instead_of: tuple[str, ...] = ()) -> None:
        layers[:] = [layer for layer in layers if layer.media_type not in (media_type, *instead_of)]
        layers.extend(_layer(blobs, media_type, content, on_status) for content in dict.fromkeys(contents))

    if recipe.template:
        put(records.TEMPLATE_TYPE, recipe.template.encode(), instead_of=(records.PROMPT_TYPE,))
    if recipe.system:
        put(records.SYSTEM_TYPE, recipe.system.encode())
    if recipe.license:
        put(records.LICENSE_TYPE, *(text.encode() for text in recipe.license))
    if parameters:
        put(records.PARAMS_TYPE, encode_json(parameters, sort_keys=True))
    if recipe.messages:
        messages = [{"role": message.role, "content": message.content} for message in recipe.messages]
        put(records.MESSAGES_TYPE, encode_json(messages))
    return layers


def _layer(blobs: Blobs, media_type: str, content: bytes, on_status: Status) -> Layer:
    """A small layer, written into the blobs unless it is there."""
    blob = blobs.add([content])
    on_status(f"{'creating new' if blob.created else 'using existing'} layer {blob.digest}")
    return Layer(media_type, blob.digest, blob.nbytes)


def _layers_of_files(blobs: Blobs, files: Mapping[str, str], on_status: Status) -> tuple[list[Layer], ModelConfig]:
    """One layer for each file and the config of the model among them."""
    layers, config = [], ModelConfig()
    for file_name, digest in files.items():
        path = PurePosixPath(file_name)
        if path.is_absolute() or ".." in path.parts or "\\" in file_name:
            raise RequestError(f"file path must be relative: {file_name}", file=file_name)
        digest = parse_digest(digest)
        if not blobs.has(digest):
            raise RequestError(f"blob {digest} of {file_name} is not here: upload it first", digest=digest)
        on_status("parsing GGUF")
        with _open(blobs, file_name, digest) as file:
            media_type = _media_type(file)
            if media_type == records.MODEL_TYPE:
                config = config_of(file)
        layers.append(Layer(media_type, digest, blobs.nbytes(digest)))
        on_status(f"using existing layer {digest}")
    if [layer.media_type for layer in layers].count(records.MODEL_TYPE) > 1:
        raise RequestError(f"several models at once: {', '.join(files)}")
    return layers, config


def _open(blobs: Blobs, file_name: str, digest: str) -> GgufFile:
    path = blobs.path(digest)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise RequestError(f"supplied file was not in GGUF format: {file_name}", file=file_name)
    try:
        file_ = open_gguf(path)
    except ModelFileError as error:
        raise ModelFileError(str(error).replace(str(path), file_name, 1), file=file_name) from error
    n_parts = file_.metadata.get("split.count", 1)
    if n_parts not in (0, 1):
        file_.close()
        raise ModelFileError(
            f"{file_name}: one of {n_parts} parts of a split GGUF: merge the parts first", file=file_name
        )
    return file_


def _media_type(file: GgufFile) -> str:
    kind = file.metadata.get("general.type")
    if kind == "adapter":
        return records.ADAPTER_TYPE
    if kind in ("projector", "mmproj") or file.metadata.get("general.architecture") == "clip":
        return records.PROJECTOR_TYPE
    return records.MODEL_TYPE


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
