"""The logits of a whole published model have the same bits on every CPU.

The product computes them on each instruction set of this machine. ``model_driver.c`` puts the same kernels together by
hand, and is run on 64-bit Arm by ``qemu-aarch64`` as well.
"""

import struct
import subprocess

import numpy as np
import pytest

from ollama_zmq.devices.base import Budget
from ollama_zmq.engine.embedding import Embedding
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.kernels.cpu import isa_names
from ollama_zmq.kernels.cpu.device import CpuDevice
from ollama_zmq.kernels.cpu.executable import frequencies
from ollama_zmq.kernels.cpu.weights import FORMATS
from ollama_zmq.models.network import Network
from tests.kernels.compiled import QEMU, compiled, compiled_for_arm
from tests.models.running import running

pytestmark = [pytest.mark.full, pytest.mark.network]
TOKEN_IDS = np.array([1, 4093, 198, 2683, 314, 260, 6376, 6588, 47, 2, 198, 1], np.int32)
LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


def product_logits(path, isa):
    device = CpuDevice(threads=2, budget=Budget(1 << 30), isa=isa)
    try:
        with running(device, path) as model:
            return model.run(TOKEN_IDS)
    finally:
        device.close()


@pytest.fixture(scope="module")
def expected(smollm2_path):
    """Logits [T, V] that the product computes with portable C."""
    return product_logits(smollm2_path, "generic")


@pytest.fixture(scope="module")
def model_file(smollm2_path, tmp_path_factory):
    """SmolLM2 as the driver reads it."""
    target = tmp_path_factory.mktemp("model") / "smollm2.bin"
    with open_gguf(smollm2_path) as gguf, target.open("wb") as out:
        network = Network(gguf)
        m, rope, heads = network.model.sizes, network.model.rope, network.model.sizes.heads[0]
        attrs = {"rotary_dim": rope.rotary_dim, "theta": rope.theta, "scale": 1.0, "ramp_start": -1.0, "ramp_end": -1.0}
        sizes = (m.n_layers, m.hidden_size, heads.n_heads, heads.n_kv_heads, heads.head_dim, len(TOKEN_IDS))
        out.write(struct.pack("<6I2f", *sizes, m.norm_eps, heads.scale))
        out.write(Embedding(gguf).rows(TOKEN_IDS).astype("<f4").tobytes())
        out.write(frequencies(attrs, None).tobytes())
        specs = [layer[name] for layer in network.layers for name in LAYER]
        for spec in (*specs, network.globals["output_norm"], network.output):
            N, K = (1, *spec.shape)[-2:]
            out.write(struct.pack("<3I", FORMATS[spec.type].index, N, K))
            out.write(gguf.data(spec.name))
    return target


def driver_logits(command, isa, model_file, tmp_path):
    subprocess.run([*command, isa, model_file, tmp_path / "logits"], check=True, timeout=900)
    return np.fromfile(tmp_path / "logits", "<f4").reshape(len(TOKEN_IDS), -1)


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    return [QEMU, compiled_for_arm("model_driver", tmp_path_factory.mktemp("arm") / "driver")]


@pytest.mark.parametrize("isa", [name for name in isa_names() if name != "generic"])
def test_the_product_gives_the_same_logits_on_every_instruction_set(smollm2_path, expected, isa):
    np.testing.assert_array_equal(product_logits(smollm2_path, isa), expected)


def test_kernels_put_together_by_hand_give_the_products_logits(model_file, expected, tmp_path):
    driver = compiled("model_driver", tmp_path / "driver", optimise="-O2")
    np.testing.assert_array_equal(driver_logits([driver], isa_names()[0], model_file, tmp_path), expected)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("isa", ["neon-dot", "neon"])
def test_arm_gives_the_same_logits(arm, model_file, expected, tmp_path, isa):
    np.testing.assert_array_equal(driver_logits(arm, isa, model_file, tmp_path), expected)
