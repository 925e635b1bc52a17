"""What a worker says about itself when a broker greets it."""

from __future__ import annotations

import socket
import sys

import psutil

from ollama_zmq.bus.measured import speeds_file, speeds_of
from ollama_zmq.devices.base import Device, Speeds
from ollama_zmq.ops.registry import ops_hash
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.messages import DeviceInfo, Welcome


class Introduction:
    """Makes a worker's ``Welcome``. The device measures itself once a day, before the first."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._speeds: Speeds | None = None

    def welcome(self) -> Welcome:
        """Return the message, with the memory that is free now."""
        device = self._device
        if self._speeds is None:
            self._speeds = speeds_of(device, speeds_file())
        memory = psutil.virtual_memory()
        return Welcome(
            package=VERSION,
            protocol=PROTOCOL,
            ops=ops_hash(),
            byte_order=sys.byteorder,
            host=socket.gethostname(),
            devices=(DeviceInfo(device.kind, device.name),),
            memory_total=memory.total,
            memory_free=memory.available,
            memory_budget=device.budget.limit,
            threads=device.threads,
            decode_bytes_per_s=self._speeds.decode_bytes_per_s,
            prefill_macs_per_s=self._speeds.prefill_macs_per_s,
            matrices=self._speeds.matrices,
            values_per_s=self._speeds.values_per_s,
            call_s=self._speeds.call_s,
        )
