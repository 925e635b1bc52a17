"""One model of the store: its manifest and config, and its texts when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from ollama_zmq.errors import ModelFileError, RequestError
from ollama_zmq.formats import manifest as records
from ollama_zmq.formats.manifest import Manifest, ModelConfig
from ollama_zmq.formats.modelfile import ChatMessage
from ollama_zmq.store.blobs import Blobs
from ollama_zmq.store.names import ModelName, parse_name


@dataclass(frozen=True)
class StoredModel:
    """One model of the store. Its texts are read from their blobs when asked for.

    Attributes:
        digest: sha256 of the manifest file, 64 hex digits.
        size: bytes of all its blobs.
        modified: when the manifest was written, UTC.
    """

    name: ModelName
    manifest: Manifest
    config: ModelConfig
    digest: str
    size: int
    modified: datetime
    blobs: Blobs

    @cached_property
    def gguf_path(self) -> Path:
        """The file of the weights.

        Raises:
            ModelFileError: the model has none, has several, or the file is missing.
        """
        layers = self.manifest.of_type(records.MODEL_TYPE)
        if len(layers) != 1:
            raise ModelFileError(
                f"model {self.name.short!r} has {len(layers)} files of weights, expected one GGUF file"
            )
        self.blobs.nbytes(layers[0].digest)
        return self.blobs.path(layers[0].digest)

    @cached_property
    def gguf_digest(self) -> str:
        """``sha256:<hex>`` of the file of the weights. Raises ModelFileError as :attr:`gguf_path` does."""
        return self.gguf_path.name.replace("-", ":", 1)

    @property
    def parent_model(self) -> str:
        """The model this one was made from, as lists print its name; empty if it was made from a file."""
        layers = self.manifest.of_type(records.MODEL_TYPE)
        try:  # older versions of Ollama wrote the path of the blob
            return parse_name(layers[0].from_).short if layers and layers[0].from_ else ""
        except RequestError:
            return ""

    @cached_property
    def template(self) -> str | None:
        """The Go template of a Modelfile's TEMPLATE, if there is one."""
        texts = self._texts(records.TEMPLATE_TYPE, records.PROMPT_TYPE)
        return texts[-1] if texts else None

    @cached_property
    def system(self) -> str | None:
        """The system prompt of a Modelfile's SYSTEM, if there is one."""
        texts = self._texts(records.SYSTEM_TYPE)
        return texts[-1] if texts else None

    @cached_property
    def license(self) -> list[str]:
        """The licenses' texts."""
        return self._texts(records.LICENSE_TYPE)

    @cached_property
    def parameters(self) -> dict[str, object]:
        """The options of a Modelfile's PARAMETERs, as JSON has them."""
        merged: dict[str, object] = {}
        for value in self._values(records.PARAMS_TYPE):
            if not isinstance(value, dict):
                raise ModelFileError(f"model {self.name.short!r}: its parameters are no JSON object")
            merged.update(value)
        return merged

    @cached_property
    def messages(self) -> list[ChatMessage]:
        """The conversation of a Modelfile's MESSAGEs."""
        messages = []
        for value in self._values(records.MESSAGES_TYPE):
            for item in value if isinstance(value, list) else [value]:
                if not isinstance(item, dict):
                    raise ModelFileError(f"model {self.name.short!r}: its messages are no JSON objects")
                messages.append(ChatMessage(str(item.get("role", "")), str(item.get("content", ""))))
        return messages

    def read_texts(self) -> None:
        """Read what it takes to answer with this model, for its blobs may be deleted later. Raises ModelFileError."""
        _ = self.template, self.system, self.parameters, self.messages

    def paths(self, media_type: str) -> list[Path]:
        """The files of all layers of *media_type*, adapters for example."""
        return [self.blobs.path(layer.digest) for layer in self.manifest.of_type(media_type)]

    def _texts(self, *media_types: str) -> list[str]:
        layers = self.manifest.of_type(*media_types)
        return [self.blobs.read(layer.digest).decode("utf-8", "replace") for layer in layers]

    def _values(self, media_type: str) -> list[object]:
        layers = self.manifest.of_type(media_type)
        return [records.decode_json(self.blobs.read(layer.digest), f"blob {layer.digest}") for layer in layers]
