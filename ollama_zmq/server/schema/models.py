"""Bodies and answers of the routes that list, show, make, copy, delete and plan models."""

from __future__ import annotations

from typing import Any

import msgspec

from ollama_zmq.server.schema.generation import ReceivedMessage, ResponseMessage


class Details(msgspec.Struct, omit_defaults=True):
    """What lists say about a model. The lengths, of context and hidden state, are in ``/api/tags`` only."""

    parent_model: str
    format: str
    family: str
    families: list[str] | None
    parameter_size: str
    quantization_level: str
    context_length: int = 0
    embedding_length: int = 0


class ModelEntry(msgspec.Struct, omit_defaults=True):
    """A line of ``/api/tags``. ``digest`` has no "sha256:" in front."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: list[str] = []


class RunningModel(msgspec.Struct):
    """A line of ``/api/ps``."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class ModelRequest(msgspec.Struct, kw_only=True):
    """Bodies that name a model. ``name`` is what old clients call ``model``."""

    model: str = ""
    name: str = ""

    @property
    def model_name(self) -> str:
        """The model's name as the client wrote it."""
        return self.model or self.name


class ShowRequest(ModelRequest, kw_only=True):
    """Body of ``POST /api/show``; ``system`` and ``options`` are shown in place of the model's own."""

    verbose: bool = False
    system: str = ""
    options: dict[str, Any] = {}


class PlanRequest(ModelRequest, kw_only=True):
    """Body of ``POST /api/cluster/plan``; ``options`` as a request that loads the model would have them."""

    options: dict[str, Any] = {}


class TensorEntry(msgspec.Struct):
    """A tensor of the file, sizes as GGUF has them (the last axis first)."""

    name: str
    type: str
    shape: list[int]


class ShowResponse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Answer of ``/api/show``."""

    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    system: str = ""
    renderer: str = ""
    parser: str = ""
    details: Details
    messages: list[ResponseMessage] = []
    model_info: dict[str, Any]
    projector_info: dict[str, Any] = {}
    tensors: list[TensorEntry] = []
    capabilities: list[str] = []
    modified_at: str = ""
    requires: str = ""


class CopyRequest(msgspec.Struct):
    """Body of ``POST /api/copy``."""

    source: str = ""
    destination: str = ""


class CreateRequest(ModelRequest, kw_only=True):
    """Body of ``POST /api/create``. ``files`` and ``adapters`` map file names to digests of uploaded blobs.

    ``quantization`` is what old clients call ``quantize``.
    """

    from_: str = msgspec.field(default="", name="from")
    files: dict[str, str] = {}
    adapters: dict[str, str] = {}
    draft_files: dict[str, str] = {}
    quantize: str = ""
    quantization: str = ""
    draft_quantize: str = ""
    remote_host: str = ""
    template: str = ""
    license: str | list[str] = []
    system: str = ""
    parameters: dict[str, Any] = {}
    messages: list[ReceivedMessage] = []
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    capabilities: list[str] = []
    info: dict[str, Any] = {}
    stream: bool = True


class Progress(msgspec.Struct):
    """A line of a long operation."""

    status: str
