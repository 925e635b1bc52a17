"""Every law of an op holds on every device: the fixture runs a test once for each."""

from __future__ import annotations

import pytest

from ollama_zmq.devices.base import Budget
from ollama_zmq.devices.registry import KINDS, open_device

BUDGET = 1 << 30


@pytest.fixture(scope="session", params=KINDS)
def device(request):
    """A device of each registered kind; one that cannot be opened is a failure."""
    opened = open_device(request.param, threads=2, budget=Budget(BUDGET))
    yield opened
    opened.close()
