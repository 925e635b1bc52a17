"""Fixtures that many tests share: a tiny random model, and published files fetched once into the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models_tiny import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama GGUF of random F16 weights, see :func:`tests.models_tiny.write_tiny_llama`. Read only."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
