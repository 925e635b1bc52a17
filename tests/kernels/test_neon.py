"""The bits of every instruction set, Arm's included, by a C program that runs each kernel on drawn numbers.

``kernel_driver.c`` is built for this machine, for AVX-VNNI in the encoding of AVX-512, since few machines have both,
and for 64-bit Arm; the portable C of this machine says what is right.
"""

import subprocess
import sys

import pytest

from ollama_zmq.kernels.cpu import isa_names
from tests.kernels.compiled import QEMU, compiled, compiled_for_arm

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(900),  # what is built with sanitizers takes minutes on a busy machine
    pytest.mark.skipif(sys.platform != "linux", reason="the kernels are built on Linux"),
]
SANITIZERS = ["-g1", "-fsanitize=address,undefined", "-fno-sanitize=null,object-size", "-fno-sanitize-recover=all"]
OUTLINED = "--param=asan-instrumentation-with-call-threshold=0"


def digests(*command):
    """What the driver prints, line by line."""
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.splitlines()
    assert len(lines) > 100
    return lines


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """The driver for this machine under AddressSanitizer and UndefinedBehaviorSanitizer."""
    return compiled("kernel_driver", tmp_path_factory.mktemp("native") / "driver", *SANITIZERS, OUTLINED)


@pytest.fixture(scope="module")
def expected(native):
    """What portable C gives on this machine."""
    return digests(native, "generic")


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """The driver for 64-bit Arm."""
    return compiled_for_arm("kernel_driver", tmp_path_factory.mktemp("arm") / "driver")


@pytest.mark.parametrize("isa", isa_names())
def test_kernels_of_this_machine_stay_in_their_buffers_and_give_the_same_bits(native, expected, isa):
    assert digests(native, isa) == expected


@pytest.mark.parametrize("isa", ["neon-dot", "neon", "generic"])
def test_arm_gives_the_same_bits(arm, expected, isa):
    assert digests(QEMU, arm, isa) == expected


def test_an_arm_without_sdot_has_the_plain_kernels_only(arm):
    assert digests(QEMU, "-cpu", "cortex-a53", arm) == digests(QEMU, "-cpu", "cortex-a53", arm, "neon")
    refused = subprocess.run([QEMU, "-cpu", "cortex-a53", arm, "neon-dot"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "no kernels of that name" in refused.stderr


def test_avx_vnni_gives_the_bits_of_portable_c(tmp_path, expected):
    driver = compiled("kernel_driver", tmp_path / "driver", "-DLANES_EVEX")
    if subprocess.run([driver, "avx2-vnni"], capture_output=True, timeout=300).returncode == 1:
        pytest.skip("this CPU has no VNNI")
    assert digests(driver, "avx2-vnni") == expected
