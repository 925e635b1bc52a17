"""Finds the file of an architecture by its name in ``general.architecture``."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ollama_zmq import models
from ollama_zmq.errors import ModelFileError
from ollama_zmq.models.architecture import Architecture

_NOT_ARCHITECTURES = ("architecture", "keys", "network", "registry")


def architecture(name: str) -> Architecture:
    """Return the module-level ``ARCHITECTURE`` of ``models/<name>.py``.

    Raises:
        ModelFileError: there is no such file. A broken one is not mistaken for a missing one.
    """
    module = f"{models.__name__}.{name}"
    if not name.isidentifier() or name in _NOT_ARCHITECTURES:
        raise ModelFileError(f"architecture {name!r} is not supported", architecture=name)
    try:
        found: Architecture = import_module(module).ARCHITECTURE
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ModelFileError(
            f"architecture {name!r} is not supported; this version runs: {', '.join(known())}", architecture=name
        ) from None
    return found


def known() -> list[str]:
    """Return the names of all architectures, sorted."""
    return sorted(found.name for found in iter_modules(models.__path__) if found.name not in _NOT_ARCHITECTURES)
