"""Devices by name, and how much memory they may take when nobody says.

A new device is a branch here and a folder in ``kernels/``. Nothing is imported before it is asked for.
"""

from __future__ import annotations

from pathlib import Path

from ollama_zmq.devices.base import Budget, Device
from ollama_zmq.errors import RequestError

KINDS = ("cpu", "reference")
HEADROOM = 0.1
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
CGROUP_FILES = (  # limit, use, and which part of the use is cache, in versions 2 and 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def open_device(kind: str, *, threads: int | None = None, budget: Budget) -> Device:
    """Return a device of this *kind*.

    Args:
        threads: how many threads it computes with; the device decides if None.

    Raises:
        RequestError: there is no such kind.
    """
    if kind == "cpu":
        from ollama_zmq.kernels.cpu import open_device as open_cpu

        opened: Device = open_cpu(threads=threads, budget=budget)
        return opened
    if kind == "reference":
        from ollama_zmq.devices.reference import ReferenceDevice

        return ReferenceDevice(budget)
    raise RequestError(f"unknown device {kind!r}: this version has {', '.join(KINDS)}", device=kind)


def default_budget() -> int:
    """Return the bytes a device may take: what is available to this process, less a tenth.

    A container's limit counts where it is lower than the machine's memory.
    """
    import psutil

    return int(available_memory(int(psutil.virtual_memory().available)) * (1 - HEADROOM))


def available_memory(machine: int, *, root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return *machine*, the bytes available on the machine, or what our control groups still allow if that is less.

    Args:
        root: where control groups are mounted; version 2, or 1 with its ``memory`` folder.
        membership: the file that says which group this process is in.
    """
    available = machine
    for group in _groups(root, membership):
        for limit_name, used_name, cache_name in CGROUP_FILES:
            limit, used = _number_in(group / limit_name), _number_in(group / used_name)
            if limit is not None and used is not None:
                available = min(available, limit - used + _reclaimable(group / "memory.stat", cache_name))
    return max(0, available)


def _groups(root: Path, membership: Path) -> list[Path]:
    """Return the folders of our control group and of those around it; a limit of any of them holds."""
    found = [root, root / "memory"]
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            group = root / controllers
            for name in path.strip("/").split("/"):
                group /= name
                found.append(group)
    return found


def _reclaimable(stat: Path, name: str) -> int:
    """Return the bytes of file cache that the kernel drops before it refuses memory."""
    try:
        fields = dict(line.split(" ", 1) for line in stat.read_text().splitlines())
        return int(fields.get(name, 0))
    except (OSError, ValueError):
        return 0


def _number_in(path: Path) -> int | None:
    """Return the number in a file; None if there is no such file, or it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
