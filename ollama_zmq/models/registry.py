"""Finds the file of an architecture by its name in ``general.architecture``."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ollama_zmq import models
from ollama_zmq.errors import ModelFileError
from ollama_zmq.models.architecture import Architecture

MAX_SHOWN = 80
_NOT_ARCHITECTURES = ("architecture", "keys", "network", "registry")


def architecture(name: str) -> Architecture:
    """Return the module-level ``ARCHITECTURE`` of ``models/<name>.py``, where ``_`` stands for a hyphen.

    Raises:
        ModelFileError: there is no such file; the message lists those that there are.
    """
    module = name.replace("-", "_")
    if module not in known():
        supported = ", ".join(known())
        raise ModelFileError(
            f"architecture {name[:MAX_SHOWN]!r} is not supported; this version runs: {supported}", architecture=name
        )
    found: Architecture = import_module(f"{models.__name__}.{module}").ARCHITECTURE
    return found


def known() -> list[str]:
    """Return the names of all architectures as their files have them, sorted."""
    return sorted(found.name for found in iter_modules(models.__path__) if found.name not in _NOT_ARCHITECTURES)
