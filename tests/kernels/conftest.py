"""CPU devices of every instruction set that this machine has."""

from __future__ import annotations

import pytest

from ollama_zmq.devices.base import Budget
from ollama_zmq.kernels.cpu import isa_names
from ollama_zmq.kernels.cpu.device import CpuDevice

BUDGET = 1 << 30


@pytest.fixture(scope="session")
def devices():
    """Instruction set -> a device on it, with a number of threads of its own: 1, 2, 3."""
    opened = {isa: CpuDevice(threads=i + 1, budget=Budget(BUDGET), isa=isa) for i, isa in enumerate(isa_names())}
    yield opened
    for device in opened.values():
        device.close()


@pytest.fixture(scope="session")
def device(devices):
    """The fastest one."""
    return devices[isa_names()[0]]


@pytest.fixture(scope="session", params=[1, 2, 3, 4])
def threads(request):
    """A device with that many threads."""
    opened = CpuDevice(threads=request.param, budget=Budget(BUDGET))
    yield opened
    opened.close()
