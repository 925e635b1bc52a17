"""Model names: ``[host/][namespace/]model[:tag]``, as Ollama reads, shortens and files them.

    smollm2           registry.ollama.ai/library/smollm2:latest
    me/poet:7b        registry.ollama.ai/me/poet:7b
    example.com/a/b   example.com/a/b:latest

Every part begins with a letter, digit or underscore and holds no separator, so a name can never be a path
out of the store. Names that differ in case only are the same model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ollama_zmq.errors import RequestError

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL_OR_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A full, valid name. Made by :func:`parse_name` and :func:`name_of_path`."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def short(self) -> str:
        """As lists show it: parts that are the default are left out, the tag never is."""
        tagged = f"{self.model}:{self.tag}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{tagged}"
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{tagged}"
        return tagged

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for names that mean the same model."""
        return tuple(part.lower() for part in (self.host, self.namespace, self.model, self.tag))

    @property
    def path(self) -> Path:
        """Where the manifest lies below the folder of manifests."""
        return Path(self.host, self.namespace, self.model, self.tag)

    def __str__(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"


def parse_name(text: str) -> ModelName:
    """The full name that *text* means; a leading ``scheme://`` is dropped.

    Raises:
        RequestError: a part is empty, too long or holds a character that no name may have.
    """
    rest, tag = text, DEFAULT_TAG
    if text.rfind(":") > text.rfind("/"):
        rest, _, tag = text.rpartition(":")
    parts = rest.rsplit("/", 2)
    host, namespace, model = [DEFAULT_HOST, DEFAULT_NAMESPACE][: 3 - len(parts)] + parts
    name = ModelName(host.rpartition("://")[2], namespace, model, tag)
    if not _is_valid(name):
        raise RequestError(f"invalid model name {text!r}", model=text)
    return name


def name_of_path(path: Path) -> ModelName | None:
    """The name whose manifest is *path* below the folder of manifests, or None if no name has that path."""
    if len(path.parts) != 4:
        return None
    name = ModelName(*path.parts)
    return name if _is_valid(name) else None


def _is_valid(name: ModelName) -> bool:
    return bool(
        _HOST.fullmatch(name.host)
        and _NAMESPACE.fullmatch(name.namespace)
        and _MODEL_OR_TAG.fullmatch(name.model)
        and _MODEL_OR_TAG.fullmatch(name.tag)
    )
