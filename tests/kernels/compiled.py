"""C programs made of the kernels, for this machine and for 64-bit Arm, where ``qemu-aarch64`` runs them.

On Debian: ``apt install gcc-aarch64-linux-gnu qemu-user``. What is missing skips the test that needs it.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels" / "cpu"
FLAGS = ["-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", f"-I{KERNELS / 'include'}"]
ARM_COMPILER = "aarch64-linux-gnu-gcc"
QEMU = "qemu-aarch64"


def compiled(name, target, *flags, compiler="gcc", optimise="-O1"):
    """``tests/kernels/NAME.c`` with all kernels, as an executable file."""
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    sources = [HERE / f"{name}.c", *sorted(KERNELS.glob("isa_*.c"))]
    subprocess.run([compiler, optimise, *FLAGS, *flags, *sources, "-lm", "-o", target], check=True, timeout=900)
    return target


def compiled_for_arm(name, target):
    """The same for 64-bit Arm; it needs nothing of that system."""
    if not shutil.which(QEMU):
        pytest.skip(f"{QEMU} is not installed")
    return compiled(name, target, "-static", compiler=ARM_COMPILER)
