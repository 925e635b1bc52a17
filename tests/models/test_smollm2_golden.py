"""SmolLM2-135M-Instruct on the CPU device against llama.cpp; the golden file's maker lies beside it."""

from pathlib import Path

import numpy as np
import pytest

from ollama_zmq.devices.base import Budget
from ollama_zmq.devices.registry import open_device
from tests.models.running import running

GOLDEN = Path(__file__).parent.parent / "golden" / "smollm2_logits.npz"
MAX_NMSE = 5e-3
MARGIN = 1.0


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def logits(golden, smollm2_path):
    """Logits [T, V] of each prompt."""
    device = open_device("cpu", threads=2, budget=Budget(2 << 30))
    with running(device, smollm2_path) as model:
        found = [model.run(golden[f"ids_{p}"]) for p in range(3)]
    device.close()
    return found


def nmse(out, expected):
    return np.sum((out - expected) ** 2) / np.sum(expected**2)


@pytest.mark.network
@pytest.mark.parametrize("p", range(3))
def test_logits_are_close_to_those_of_llama_cpp(golden, logits, p):
    assert nmse(logits[p][-1], golden[f"logits_{p}"].astype(np.float64)) <= MAX_NMSE
    top = np.take_along_axis(logits[p], golden[f"top_ids_{p}"], axis=1)
    assert nmse(top, golden[f"top_{p}"]) <= MAX_NMSE


@pytest.mark.network
def test_a_q8_0_cache_keeps_the_logits_as_close(golden, smollm2_path):
    device = open_device("cpu", threads=2, budget=Budget(2 << 30))
    with running(device, smollm2_path, kv_type="q8_0") as model:
        out = model.run(golden["ids_0"])
    device.close()
    assert nmse(out[-1], golden["logits_0"].astype(np.float64)) <= MAX_NMSE


@pytest.mark.network
@pytest.mark.parametrize("p", range(3))
def test_the_likeliest_token_is_the_same_where_llama_cpp_is_sure(golden, logits, p):
    top_ids, top = golden[f"top_ids_{p}"], golden[f"top_{p}"]
    sure = top[:, 0] - top[:, 1] > MARGIN
    assert sure.sum() >= 3
    np.testing.assert_array_equal(logits[p].argmax(axis=1)[sure], top_ids[sure, 0])
