"""What a model can do, read from its GGUF header and template. Blobs never change, so it is read once per blob."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ollama_zmq.errors import RequestError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.store.stored_model import StoredModel
from ollama_zmq.text.model_template import chat_template


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known without loading.

    Attributes:
        context_length: the context it was trained for; 0 if the file does not say.
        template: the chat template's text, the file's own or the Modelfile's.
        capabilities: as Ollama names them.
    """

    architecture: str
    context_length: int
    template: str
    capabilities: tuple[str, ...]

    def require(self, model: str, capability: str) -> None:
        """Refuse what the model cannot do.

        Raises:
            RequestError: ``"m" does not support tools``.
        """
        if capability not in self.capabilities:
            raise RequestError(f'"{model}" does not support {capability}', model=model, capability=capability)


def facts_of(model: StoredModel, go_template: str | None = None) -> Facts:
    """The facts of *model*, with *go_template* in place of its own.

    Raises:
        ModelFileError: its file is missing or damaged.
        RequestError: *go_template* is no template.
    """
    return _facts(model.gguf_path, go_template or model.template)


@lru_cache(maxsize=64)
def _facts(path: Path, go_template: str | None) -> Facts:
    with open_gguf(path) as gguf:
        architecture, metadata = gguf.architecture, gguf.metadata
        template = chat_template(metadata, go_template)
        context_length = metadata.get(f"{architecture}.context_length")
        embeds = any(key.endswith(".pooling_type") for key in metadata)
    capabilities = ["embedding" if embeds else "completion"]
    for name, present in (
        ("tools", template.takes_tools),
        ("insert", template.takes_suffix),
        ("thinking", template.takes_thinking),
    ):
        if present and not embeds:
            capabilities.append(name)
    return Facts(
        architecture=architecture,
        context_length=context_length if isinstance(context_length, int) else 0,
        template=template.source,
        capabilities=tuple(capabilities),
    )
