"""What a worker says of itself in the handshake: its ``Welcome``, and the speeds in it, kept for a day.

A worker that starts again joins at once, because what its device measured is kept in a file:

    $XDG_CACHE_HOME/ollama-zmq/speeds.json   {"version, device, CPUs": [when, speeds]}

A device's name tells processor, instruction set and threads. A file that cannot be read is as good as none.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from ollama_zmq.devices.base import Device, Speeds
from ollama_zmq.ops.registry import ops_hash
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.messages import DeviceInfo, Welcome

KEPT_S = 86400.0
Kept = dict[str, tuple[float, Speeds]]


class WelcomeBuilder:
    """Makes a worker's ``Welcome``. The device measures itself once a day, before the first."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._speeds: Speeds | None = None

    def build(self) -> Welcome:
        """Return the message, with the memory that is free now."""
        device = self._device
        if self._speeds is None:
            self._speeds = measured_speeds(device, speeds_file())
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


def speeds_file() -> Path:
    """Return where measured speeds are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ollama-zmq", "speeds.json")


def measured_speeds(device: Device, path: Path) -> Speeds:
    """Return what *device* measured of itself within a day, or measures now and writes to *path*."""
    kept, now = _read(path), time.time()
    kept = {key: (when, speeds) for key, (when, speeds) in kept.items() if 0 <= now - when < KEPT_S}
    key = f"{VERSION}, {device.name}, {sorted(os.sched_getaffinity(0))}"
    if key not in kept:
        kept[key] = now, device.measure()
        _write(path, kept)
    return kept[key][1]


def _read(path: Path) -> Kept:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except (OSError, msgspec.MsgspecError):
        return {}


def _write(path: Path, kept: Kept) -> None:
    """Write the file as a whole, or not at all."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(msgspec.json.encode(kept))
        os.replace(file.name, path)
