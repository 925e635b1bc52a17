"""Reading an architecture's keys from a GGUF header, each checked as it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from ollama_zmq.errors import ModelFileError

MAX_SHOWN = 12


class Keys:
    """The header keys of one architecture, each checked as it is read; *path* is named in errors.

    Attributes:
        num_ctx: the longest sequence that this load is for; 0 for whatever the model was trained for.
    """

    def __init__(self, metadata: Mapping[str, Any], prefix: str, path: object = "", num_ctx: int = 0) -> None:
        self.metadata = metadata
        self.prefix = prefix
        self.path = path
        self.num_ctx = num_ctx

    @property
    def n_layers(self) -> int:
        """``block_count`` without the layers at its end that guess further tokens, which nothing reads.

        Raises:
            ModelFileError: no layer is left.
        """
        n_layers, extra = self.integer("block_count"), self.integer("nextn_predict_layers", 0, least=0)
        if extra >= n_layers:
            raise self.error("nextn_predict_layers", extra, f"less than block_count {n_layers}")
        return n_layers - extra

    def has(self, name: str) -> bool:
        """Whether the file says anything about *name*."""
        return self.metadata.get(f"{self.prefix}.{name}") is not None

    def has_list(self, name: str) -> bool:
        """Whether the file says something of *name* for each layer."""
        return isinstance(self.metadata.get(f"{self.prefix}.{name}"), np.ndarray | list | tuple)

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a key that is a whole number, at least *least*. An array of equal ones, one a layer, counts as one.

        Raises:
            ModelFileError: it is missing, is something else, or differs from layer to layer.
        """
        value = self._value(name, default)
        if isinstance(value, np.ndarray | list) and len(value):
            value = self._of_all_layers(name, list(value))
        return self._whole(name, value, least)

    def per_layer(self, name: str, default: int | Sequence[int] | None = None, *, least: int = 0) -> tuple[int, ...]:
        """Return a key that is one whole number a layer, each at least *least*; a single one means the same for all.

        Raises:
            ModelFileError: it is missing, is something else, or has another length than there are layers.
        """
        value, n_layers = self._value(name, default), self.n_layers
        if not isinstance(value, np.ndarray | list | tuple):
            return (self._whole(name, value, least),) * n_layers
        lengths = {n_layers, self.integer("block_count")}
        if len(value) not in lengths:
            raise self.error(name, f"{len(value)} numbers", f"one for each of {n_layers} layers")
        each = (one.item() if isinstance(one, np.generic) else one for one in value[:n_layers])
        return tuple(self._whole(name, int(one) if isinstance(one, bool) else one, least) for one in each)

    def number(self, name: str, default: float | None = None) -> float:
        """Return a key that is a number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise self.error(name, repr(value), "a number")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a key that is one number a layer; a single one means the same for all.

        Raises:
            ModelFileError: it is missing, is something else, or has another length than there are layers.
        """
        value = self._value(name, None)
        if not isinstance(value, np.ndarray | list | tuple):
            return (self.number(name),) * self.n_layers
        if len(value) < self.n_layers or not all(isfinite(one) for one in value):
            raise self.error(name, f"{len(value)} numbers", f"one for each of {self.n_layers} layers")
        return tuple(float(one) for one in value[: self.n_layers])

    def flag(self, name: str, default: bool) -> bool:
        """Return a key that is true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.error(name, repr(value), "true or false")
        return value

    def word(self, name: str, default: str) -> str:
        """Return a key that is a string."""
        return str(self._value(name, default))

    def error(self, name: str, found: object, expected: str) -> ModelFileError:
        """Return the error that says what is wrong with key *name*."""
        return self._error(f"{self.prefix}.{name} = {found}, expected {expected}")

    def _error(self, text: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {text}" if self.path else text)

    def _whole(self, name: str, value: Any, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(name, repr(value), f"a whole number from {least}")
        return value

    def _of_all_layers(self, name: str, values: list[Any]) -> Any:
        if any(value != values[0] for value in values):
            few = ", ".join(map(str, values[:MAX_SHOWN])) + (", …" if len(values) > MAX_SHOWN else "")
            differs = "differs from layer to layer, which this architecture does not support"
            raise self._error(f"{self.prefix}.{name} = [{few}] {differs}")
        return values[0].item() if isinstance(values[0], np.generic) else values[0]

    def _value(self, name: str, default: Any) -> Any:
        value = self.metadata.get(f"{self.prefix}.{name}", default)
        if value is None:
            raise self._error(f"metadata key {self.prefix}.{name} is missing")
        return value
