"""A model's manifest and config as Ollama writes them: JSON of a fixed key order, so that digests agree.

A manifest (docker's version 2) names blobs, the layers; a layer's media type says what it is. The config is
a blob too and says what lists show. Fields we do not know are ignored when a file is read; bytes that are not UTF-8
become U+FFFD.
"""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.foreign import json_value
from ollama_zmq.printable import whole_characters

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
MANIFEST_LIST_TYPE = "application/vnd.ollama.manifest.list.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
MODEL_TYPE = "application/vnd.ollama.image.model"
ADAPTER_TYPE = "application/vnd.ollama.image.adapter"
PROJECTOR_TYPE = "application/vnd.ollama.image.projector"
TEMPLATE_TYPE = "application/vnd.ollama.image.template"
PROMPT_TYPE = "application/vnd.ollama.image.prompt"  # what templates were called before
SYSTEM_TYPE = "application/vnd.ollama.image.system"
PARAMS_TYPE = "application/vnd.ollama.image.params"
MESSAGES_TYPE = "application/vnd.ollama.image.messages"
LICENSE_TYPE = "application/vnd.ollama.image.license"

_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


class Layer(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One blob of a model.

    Attributes:
        digest: ``sha256:<64 hex>``.
        from_: the blob or model it was taken from, for people.
    """

    media_type: str
    digest: str
    size: int
    from_: str = msgspec.field(default="", name="from")
    name: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a model consists of."""

    schema_version: int = msgspec.field(default=2, name="schemaVersion")
    media_type: str = msgspec.field(default=MANIFEST_TYPE, name="mediaType")
    config: Layer
    layers: tuple[Layer, ...] = ()

    def of_type(self, *media_types: str) -> tuple[Layer, ...]:
        """The layers of these types, in order."""
        return tuple(layer for layer in self.layers if layer.media_type in media_types)

    @property
    def nbytes(self) -> int:
        """Bytes of the config and all layers."""
        return self.config.size + sum(layer.size for layer in self.layers)


class RootFs(msgspec.Struct, frozen=True):
    """What docker calls the file system of an image: the digests of the layers."""

    type: str = "layers"
    diff_ids: tuple[str, ...] | None = ()


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What lists and ``show`` say about a model.

    Attributes:
        model_type: the number of parameters, ``134.52M``.
        file_type: the quantization, ``Q4_K_M``.
    """

    model_format: str = ""
    model_family: str = ""
    model_families: tuple[str, ...] | None = None
    model_type: str = ""
    file_type: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    architecture: str = "amd64"
    os: str = "linux"
    rootfs: RootFs = RootFs()


T = TypeVar("T")

_OPTIONAL_CONFIG = ("renderer", "parser", "requires")


def encode_manifest(manifest: Manifest) -> bytes:
    """The file's bytes."""
    return encode_json(msgspec.to_builtins(manifest))


def encode_config(config: ModelConfig) -> bytes:
    """The blob's bytes."""
    fields = msgspec.to_builtins(config)
    return encode_json({key: value for key, value in fields.items() if value or key not in _OPTIONAL_CONFIG})


def decode_manifest(raw: bytes, what: str) -> Manifest:
    """The manifest in *raw*; *what* names it in errors.

    Raises:
        ModelFileError: it is no manifest of one model.
    """
    if _decode(raw, _Kind, what).media_type == MANIFEST_LIST_TYPE:
        raise ModelFileError(f"{what}: lists of manifests are not supported: pull a single variant of the model")
    return _decode(raw, Manifest, what)


def decode_config(raw: bytes, what: str) -> ModelConfig:
    """The config in *raw*. Raises ModelFileError if it is none."""
    return _decode(raw, ModelConfig, what)


def decode_json(raw: bytes, what: str) -> object:
    """The JSON value in *raw*. Raises ModelFileError if it is none."""
    return _decode(raw, object, what)


class _Kind(msgspec.Struct):
    media_type: str = msgspec.field(default="", name="mediaType")


def _decode(raw: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.convert(json_value(raw), kind)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{what}: damaged: {error}") from error


def encode_json(value: object, *, sort_keys: bool = False) -> bytes:
    """JSON byte for byte as Go's encoder writes it: compact, ``<>&`` escaped, whole floats as integers, a newline."""
    plain = _whole_floats_as_integers(value)
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys, allow_nan=False)
    return whole_characters(text).translate(_ESCAPES).encode() + b"\n"


def _whole_floats_as_integers(value: object) -> object:
    match value:
        case float() if value.is_integer() and abs(value) < 1e21:
            return int(value)
        case dict():
            return {key: _whole_floats_as_integers(item) for key, item in value.items()}
        case list() | tuple():
            return [_whole_floats_as_integers(item) for item in value]
    return value
