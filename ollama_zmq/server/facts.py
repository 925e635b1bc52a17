"""What a model can do, read from its GGUF header and template. Blobs never change, so it is read once per blob.

"tools" and "thinking" are capabilities of a template and of this server: while the server does not tell calls and
thoughts from text, no model has them here, and a request that wants them is refused rather than answered wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ollama_zmq.errors import RequestError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.store.stored_model import StoredModel
from ollama_zmq.text.model_template import chat_template

MISSING = {
    "tools": "this version does not tell tool calls from text",
    "thinking": "this version does not tell thoughts from text",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known without loading.

    Attributes:
        context_length: the context it was trained for; 0 if the file does not say.
        embedding_length: the size of its hidden state; 0 if the file does not say.
        template: the chat template's text, the file's own or the Modelfile's.
        capabilities: as Ollama names them.
        wants: what its template could do and this server cannot, of ``MISSING``.
    """

    architecture: str
    context_length: int
    embedding_length: int
    template: str
    capabilities: tuple[str, ...]
    wants: tuple[str, ...] = ()

    def require(self, model: StoredModel, requested: str, capability: str) -> None:
        """Refuse what *model*, *requested* under this name, cannot do.

        Raises:
            RequestError: ``"m" does not support thinking``, and why, if it is not the model that cannot.
        """
        if capability in self.capabilities:
            return
        name = str(model.name) if capability in ("tools", "insert") else f'"{requested}"'
        reason = f": {MISSING[capability]}" if capability in self.wants else ""
        raise RequestError(f"{name} does not support {capability}{reason}", model=requested, capability=capability)


def facts_of(model: StoredModel, go_template: str = "") -> Facts:
    """The facts of *model*, with *go_template* in place of its own unless that is "".

    Raises:
        ModelFileError: its file is missing or damaged.
    """
    return _facts(model.gguf_path, go_template or model.template)


@lru_cache(maxsize=1024)
def _facts(path: Path, go_template: str | None) -> Facts:
    with open_gguf(path) as gguf:
        metadata = gguf.metadata
        template = chat_template(metadata, go_template)
        embeds = any(key.endswith(".pooling_type") for key in metadata)
        takes = {"tools": template.takes_tools, "insert": template.takes_suffix, "thinking": template.takes_thinking}
        able = [name for name, present in takes.items() if present and not embeds]
        return Facts(
            architecture=gguf.architecture,
            context_length=_integer(metadata.get(f"{gguf.architecture}.context_length")),
            embedding_length=_integer(metadata.get(f"{gguf.architecture}.embedding_length")),
            template=template.source,
            capabilities=("embedding" if embeds else "completion", *(name for name in able if name not in MISSING)),
            wants=tuple(name for name in able if name in MISSING),
        )


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0
