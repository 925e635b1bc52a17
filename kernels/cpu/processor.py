"""What this machine's processor is called and how much of it we may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
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


def default_threads(cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP) -> int:
    """Return how many threads this process can run at once: its CPUs, less where a control group allows less."""
    return max(1, min(len(allowed_cpus()), int(_cgroup_cpus(cgroups, own_cgroup))))


def _cgroup_cpus(cgroups: Path, own_cgroup: Path) -> float:
    """The least of what the process's control group (version 2) and those it lies in allow."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        lines = []
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/").strip("/")
    folders = [cgroups / own, *(cgroups / own).parents]
    return min(_quota(folder) for folder in folders if folder.is_relative_to(cgroups))


def _quota(folder: Path) -> float:
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return float(limit) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return NO_LIMIT
