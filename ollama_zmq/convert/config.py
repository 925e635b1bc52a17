"""A model's ``config.json``, each value checked as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from ollama_zmq.errors import ModelFileError

MAX_SHOWN = 120
CONFIG_FILE = "config.json"


class CheckpointConfig:
    """What ``config.json`` says of the text model: of a model that also sees, its ``text_config``.

    A key may have several names; the first that is there and not null counts. Errors name the first.
    """

    def __init__(self, values: Mapping[str, Any], where: str = CONFIG_FILE) -> None:
        text = values.get("text_config")
        self._values = {**values, **text} if isinstance(text, dict) else dict(values)
        self._values["architectures"] = values.get("architectures")
        self._where = where

    @property
    def model_class(self) -> str:
        """The class that the model's makers run it with. Raises ModelFileError."""
        names = self._values.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise self.error("architectures", names, "the name of a class in a list")
        return names[0]

    def get(self, *names: str) -> Any:
        """Return the value of the first of *names* that is there, whatever it is; None where none is."""
        return next((value for name in names if (value := self._values.get(name)) is not None), None)

    def integer(self, *names: str, default: int | None = None) -> int:
        """Return a whole number. Raises ModelFileError if it is missing or another thing."""
        value = self.get(*names)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise self.error(names[0], value, "a whole number")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """Return a number. Raises ModelFileError if it is missing or another thing."""
        value = self.get(*names)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise self.error(names[0], value, "a number")
        return float(value)

    def flag(self, *names: str, default: bool) -> bool:
        """Return true or false. Raises ModelFileError if it is another thing."""
        value = self.get(*names)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(names[0], value, "true or false")
        return value

    def words(self, *names: str) -> list[str]:
        """Return a list of words. Raises ModelFileError if it is missing or another thing."""
        value = self.get(*names)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.error(names[0], value, "a list of words")
        return value

    def table(self, *names: str) -> CheckpointConfig:
        """Return an object in the config, empty if it is not there. Raises ModelFileError if it is another thing."""
        value = self.get(*names)
        if not isinstance(value, dict | None):
            raise self.error(names[0], value, "an object")
        return CheckpointConfig(value or {}, f"{self._where}: {names[0]}")

    def error(self, name: str, found: object, expected: str) -> ModelFileError:
        """Return the error that says what is wrong with key *name*."""
        return ModelFileError(f"{self._where}: {name} is {found!r:.{MAX_SHOWN}}, expected {expected}", key=name)

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None
