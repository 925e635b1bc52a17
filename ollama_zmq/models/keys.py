"""Reading an architecture's keys from a GGUF header, each checked as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np

from ollama_zmq.errors import ModelFileError

MAX_SHOWN = 12


class Keys:
    """The header keys of one architecture, each checked as it is read."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str) -> None:
        self.metadata = metadata
        self.prefix = prefix

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a key that is a whole number, at least *least*. An array of equal ones, one a layer, counts as one.

        Raises:
            ModelFileError: it is missing, is something else, or differs from layer to layer.
        """
        value = self._value(name, default)
        if isinstance(value, np.ndarray | list) and len(value):
            value = self._of_all_layers(name, list(value))
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ModelFileError(f"{self.prefix}.{name} = {value!r}, expected a whole number from {least}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a key that is a number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise ModelFileError(f"{self.prefix}.{name} = {value!r}, expected a number")
        return float(value)

    def word(self, name: str, default: str) -> str:
        """Return a key that is a string."""
        return str(self._value(name, default))

    def _of_all_layers(self, name: str, values: list[Any]) -> Any:
        if any(value != values[0] for value in values):
            few = ", ".join(map(str, values[:MAX_SHOWN])) + (", …" if len(values) > MAX_SHOWN else "")
            raise ModelFileError(
                f"{self.prefix}.{name} = [{few}] differs from layer to layer, which this architecture does not support"
            )
        return values[0].item() if isinstance(values[0], np.generic) else values[0]

    def _value(self, name: str, default: Any) -> Any:
        value = self.metadata.get(f"{self.prefix}.{name}", default)
        if value is None:
            raise ModelFileError(f"metadata key {self.prefix}.{name} is missing")
        return value


def rope_scale(keys: Keys) -> float:
    """Return the factor on rotary angles: 1, or the inverse of linear scaling.

    A file that has a factor and does not name its type scales linearly, as llama.cpp reads it.

    Raises:
        ModelFileError: the file scales in a way that is neither linear nor by frequency factors.
    """
    kind = keys.word("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "llama3"):
        raise ModelFileError(f"{keys.prefix}.rope.scaling.type = {kind!r} is not supported")
    if kind != "linear":
        return 1.0
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    if factor < 0:
        raise ModelFileError(f"{keys.prefix}.rope.scaling.factor = {factor}, expected a positive number")
    return 1.0 / (factor or 1.0)
