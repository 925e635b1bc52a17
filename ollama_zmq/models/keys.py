"""Reading an architecture's keys from a GGUF header, each checked as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_zmq.errors import ModelFileError


class Keys:
    """The header keys of one architecture, each checked as it is read."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str) -> None:
        self.metadata = metadata
        self.prefix = prefix

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a key that is a whole number, at least 0, or at least 1 where there is no default."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < (1 if default is None else 0):
            raise ModelFileError(f"{self.prefix}.{name} = {value!r}, expected a positive whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a key that is a number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelFileError(f"{self.prefix}.{name} = {value!r}, expected a number")
        return float(value)

    def word(self, name: str, default: str) -> str:
        """Return a key that is a string."""
        return str(self._value(name, default))

    def _value(self, name: str, default: Any) -> Any:
        value = self.metadata.get(f"{self.prefix}.{name}", default)
        if value is None:
            raise ModelFileError(f"metadata key {self.prefix}.{name} is missing")
        return value


def rope_scale(keys: Keys) -> float:
    """Return the factor on rotary angles: 1, or the inverse of linear scaling.

    Raises:
        ModelFileError: the file scales in a way that is neither linear nor by frequency factors.
    """
    kind = keys.word("rope.scaling.type", "none")
    if kind not in ("none", "linear", "llama3"):
        raise ModelFileError(f"{keys.prefix}.rope.scaling.type = {kind!r} is not supported")
    factor = keys.number("rope.scaling.factor", 1.0) if kind == "linear" else 1.0
    old_key = keys.number("rope.scale_linear", 1.0)
    return 1.0 / (factor if factor not in (0.0, 1.0) else old_key or 1.0)
