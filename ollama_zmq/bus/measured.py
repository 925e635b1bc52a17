"""What devices measured of themselves, kept for a day: a worker that starts again joins at once.

    $XDG_CACHE_HOME/ollama-zmq/speeds.json   {"version, device, CPUs": [when, speeds]}

A device's name tells processor, instruction set and threads. A file that cannot be read is as good as none.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from ollama_zmq.devices.base import Device, Speeds
from ollama_zmq.version import VERSION

KEPT_S = 86400.0
Kept = dict[str, tuple[float, Speeds]]


def speeds_file() -> Path:
    """Where they are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ollama-zmq", "speeds.json")


def speeds_of(device: Device, path: Path) -> Speeds:
    """What *device* measured of itself within a day, or measures at once."""
    kept, now = _kept(path), time.time()
    kept = {key: (when, speeds) for key, (when, speeds) in kept.items() if 0 <= now - when < KEPT_S}
    key = f"{VERSION}, {device.name}, {sorted(os.sched_getaffinity(0))}"
    if key not in kept:
        kept[key] = now, device.measure()
        _keep(path, kept)
    return kept[key][1]


def _kept(path: Path) -> Kept:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except (OSError, msgspec.MsgspecError):
        return {}


def _keep(path: Path, kept: Kept) -> None:
    """Write the file as a whole, or not at all."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(msgspec.json.encode(kept))
        os.replace(file.name, path)
