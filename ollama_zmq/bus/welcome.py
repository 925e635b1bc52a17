"""What a worker says of itself in the handshake: its ``Welcome``, and the speeds in it, kept for a day.

A worker that starts again joins at once, because what its device measured is kept in a file:

    $XDG_CACHE_HOME/ollama-zmq/speeds.json   {"version, device, CPUs": [when, speeds]}

A device's name tells processor, instruction set and threads. A file that cannot be read is as good as none.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from ollama_zmq.devices.base import Device, Speeds
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.messages import DeviceInfo, Welcome

KEPT_S = 86400.0
Kept = dict[str, tuple[float, Speeds]]


class WelcomeBuilder:
    """Makes a worker's ``Welcome``. The device measures itself once a day, before the first.

    Attributes:
        id: by which the worker is known under any address.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._speeds: Speeds | None = None
        self.id = ""

    def build(self) -> Welcome:
        """Return the message."""
        device = self._device
        if self._speeds is None:
            self._speeds = measured_speeds(device, speeds_file())
        return Welcome(
            package=VERSION,
            protocol=PROTOCOL,
            host=socket.gethostname(),
            devices=(DeviceInfo(device.kind, device.name),),
            memory_total=psutil.virtual_memory().total,
            memory_budget=device.budget.limit,
            threads=device.threads,
            decode_bytes_per_s=self._speeds.decode_bytes_per_s,
            prefill_macs_per_s=self._speeds.prefill_macs_per_s,
            matrices=self._speeds.matrices,
            values_per_s=self._speeds.values_per_s,
            call_s=self._speeds.call_s,
            id=self.id,
        )


def worker_id(endpoint: str, path: Path, network: str | None = None) -> str:
    """Return the id of the worker that is bound to *endpoint*, made of what is kept in the file *path*; "" without one.

    *network*, this process's own when None, and endpoint are part of it: a home may be shared by several machines,
    which may all have one host name, and by several workers of one.
    """
    network = _network() if network is None else network
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), path.open("x") as file:
            file.write(secrets.token_hex(16))
        kept = path.read_text()
    except OSError:
        return ""
    identity = "\0".join((kept, socket.gethostname(), network, endpoint))
    return hashlib.sha256(identity.encode()).hexdigest()[:32] if kept else ""


def _network() -> str:
    """What tells this machine's network, or a container's, from every other: the boot and the namespace; "" unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/net')}"
    except OSError:
        return ""


def id_file() -> Path:
    """Return where what makes this machine's workers known again is kept."""
    return speeds_file().with_name("worker-id")


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
