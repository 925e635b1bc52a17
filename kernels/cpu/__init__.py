"""CPU kernels in Cython and C, and the device that runs programs on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ollama_zmq.devices.base import Budget
    from ollama_zmq.kernels.cpu.device import CpuDevice


def open_device(threads: int | None, budget: Budget) -> CpuDevice:
    """Return the CPU device, with *threads* threads or as many as this process may use at once.

    Raises:
        RequestError: ``OLLAMA_CPU_ISA`` names an instruction set that this CPU has not.
    """
    from ollama_zmq.kernels.cpu.device import CpuDevice

    return CpuDevice(threads=threads, budget=budget)


def isa_names() -> tuple[str, ...]:
    """Return the instruction sets with kernels that this CPU has, fastest first: "avx512",
    "avx2-vnni", "avx2", "neon-dot", "neon", "generic"."""
    from ollama_zmq.kernels.cpu.simd import isa_names as names

    found: tuple[str, ...] = names()
    return found
