"""A small model, and a coordinator whose workers answer at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_zmq.cluster.coordinator import Coordinator
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models.network import Network
from tests.cluster.fake_workers import FakeWorkers


@pytest.fixture(scope="module")
def network(tiny_gguf: Path) -> Iterator[Network]:
    with open_gguf(tiny_gguf) as gguf:
        yield Network(gguf)


@pytest.fixture
def workers() -> FakeWorkers:
    return FakeWorkers(Coordinator("f00d"))
