"""Architectures: one file per name in ``general.architecture``, found by that name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ollama_zmq.errors import ModelFileError

if TYPE_CHECKING:
    from ollama_zmq.models.base import Architecture

_NOT_ARCHITECTURES = ("base", "keys")


def architecture(name: str) -> Architecture:
    """Return the module-level ``ARCHITECTURE`` of ``models/<name>.py``.

    Raises:
        ModelFileError: there is no such file. A broken one is not mistaken for a missing one.
    """
    module = f"{__name__}.{name}"
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
    from pkgutil import iter_modules

    return sorted(found.name for found in iter_modules(__path__) if found.name not in _NOT_ARCHITECTURES)
