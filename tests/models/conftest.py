"""The reference device, on which every architecture is tried."""

from __future__ import annotations

import pytest

from ollama_zmq.devices.base import Budget
from ollama_zmq.devices.registry import open_device


@pytest.fixture
def device():
    """A reference device; a test that leaves something open fails."""
    opened = open_device("reference", budget=Budget(1 << 30))
    yield opened
    assert opened.budget.used == 0
    opened.close()
