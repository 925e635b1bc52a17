"""What this machine's processor is called and how much of it we may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
NO_LIMIT = 1e6


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """Return the model name of the CPU, or its architecture where the system does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def allowed_cpus() -> list[int]:
    """Return the numbers of the CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def default_threads(quota: Path = CGROUP_QUOTA) -> int:
    """Return how many threads this process can run at once: its CPUs, less where a control group allows less."""
    return max(1, min(len(allowed_cpus()), int(_cgroup_cpus(quota))))


def _cgroup_cpus(quota: Path) -> float:
    try:
        limit, period = quota.read_text().split()
        return float(limit) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return NO_LIMIT
