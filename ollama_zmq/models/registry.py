"""Finds an architecture by its name in ``general.architecture``: each file of this folder names those it has."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from ollama_zmq import models
from ollama_zmq.errors import ModelFileError
from ollama_zmq.models.architecture import Model
from ollama_zmq.models.keys import Keys

MAX_SHOWN = 80
_SHARED = ("architecture", "keys", "mixtures", "names", "network", "parts", "registry", "rotary", "sizes", "views")
Architecture = Callable[[Keys], Model]  # raises ModelFileError


def architecture(name: str) -> Architecture:
    """Return what makes a model of the keys of a file whose architecture is *name*.

    Raises:
        ModelFileError: there is none; the message lists those that there are.
    """
    found = known()
    if name not in found:
        supported = ", ".join(found)
        raise ModelFileError(
            f"architecture {name[:MAX_SHOWN]!r} is not supported; this version runs: {supported}", architecture=name
        )
    return found[name]


def known() -> dict[str, Architecture]:
    """Return all architectures by the names that files have, sorted."""
    found: dict[str, Architecture] = {}
    for module in iter_modules(models.__path__):
        if module.name not in _SHARED:
            found |= import_module(f"{models.__name__}.{module.name}").ARCHITECTURES
    return dict(sorted(found.items()))
