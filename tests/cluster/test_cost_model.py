from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ollama_zmq.cluster.cost_model import CACHE_SHARE, CostEstimate, WorkerProfile, cost_of
from ollama_zmq.cluster.stages import LoadOrder, demand_of
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.models.network import Network
from ollama_zmq.ops.builder import Builder
from ollama_zmq.wire.messages import MatrixSpeed
from tests.models_tiny import write_tiny_llama

Q4_K, Q6_K = QuantType.Q4_K.id, QuantType.Q6_K.id
PROFILE = WorkerProfile(
    "w", 1 << 30, 10e9, 100e9, matrices={Q4_K: MatrixSpeed(Q4_K, 20e9, 50e9)}, values_per_s=1e9, call_s=1e-6
)


@pytest.fixture
def experts(tmp_path: Path) -> Iterator[Network]:
    with open_gguf(write_tiny_llama(tmp_path / "tiny.gguf", experts=(8, 3))) as file:
        yield Network(file)


def test_every_tensor_type_is_read_and_multiplied_at_its_own_speed():
    line = PROFILE.compute(CostEstimate({Q4_K: (4e9, 4e9), Q6_K: (1e9, 1e9)}))
    assert line.seconds(1) == pytest.approx(4 / 20 + 1 / 10)
    assert line.row_s == pytest.approx(4 / 50 + 1 / 100)


def test_a_token_alone_reads_its_context_and_waits_for_every_op():
    line = PROFILE.compute(CostEstimate(cache_nbytes=8e9, calls=1000))
    assert line.seconds(1) == pytest.approx(8 / 10 / CACHE_SHARE + 1e-3)
    assert line.row_s == 0.0


def test_many_tokens_pass_on_their_values_and_attend_to_each_other():
    assert PROFILE.compute(CostEstimate(attention_macs=8e9, values=1e6)).row_s == pytest.approx(
        8 / 100 / CACHE_SHARE + 1e-3
    )


def test_a_speed_of_nothing_gives_a_long_time_and_no_error():
    assert WorkerProfile("w", 1, 0.0, 0.0).compute(CostEstimate({Q4_K: (1e6, 1e6)})).seconds(1) == pytest.approx(1.0)


@pytest.mark.parametrize(("window", "seen"), [(None, 1000), (100, 100)])
def test_a_window_bounds_what_is_read_of_the_context(window, seen):
    ops = Builder("attention")
    cache = ops.cache("kv", n_kv_heads=2, head_dim=16)
    q = ops.input("q", ("T", 4 * 16))
    out = ops.attention(q, cache, n_heads=4, n_kv_heads=2, head_dim=16, scale=0.25, window=window)
    assert cost_of(ops.program("out", out), {}, context=1000).cache_nbytes == seen * 2 * 2 * 16 * 2


def test_one_token_reads_the_experts_it_uses_and_all_else(experts):
    demand = demand_of(LoadOrder(0, "tiny", experts, "", (), num_ctx=128, num_parallel=1, max_tokens=64))
    tensors = experts.gguf.tensors.items()
    stacks = sum(tensor.nbytes for name, tensor in tensors if name.startswith("blk.0") and "_exps" in name)
    norms = sum(spec.shape[0] * 4 for spec in experts.layers[0].values() if len(spec.shape) == 1)
    read = sum(nbytes for nbytes, _ in demand.layer_costs[0].matrices.values())
    assert read == experts.layer_nbytes(0) - norms - stacks * 5 / 8


def test_equal_devices_are_as_fast_as_the_fastest_of_them_unless_they_are_far_apart():
    def measured(bytes_per_s: float, *devices: str) -> WorkerProfile:
        return replace(PROFILE, decode_bytes_per_s=bytes_per_s, call_s=1 / bytes_per_s, devices=devices)

    slow, fast, far, other, nameless = (
        measured(8e9, "a CPU"),
        measured(11e9, "a CPU"),
        measured(16e9, "a CPU"),
        measured(12e9, "another"),
        measured(10e9),
    )
    profiles = [slow, fast, far, other, nameless]
    found = [profile.as_fast_as_identical(profiles) for profile in profiles]
    assert [profile.decode_bytes_per_s for profile in found] == [11e9, 16e9, 16e9, 12e9, 10e9]
    assert [profile.call_s for profile in found[:2]] == [1 / 11e9, 1 / 16e9]
    assert slow.as_fast_as_identical([slow]) == slow


def test_a_row_is_moved_there_and_back_as_float32():
    link = replace(PROFILE, rtt_s=0.01, bandwidth_bytes_per_s=1e6)
    assert link.transfer(1000).row_s == pytest.approx(2 * 4 * 1000 / 1e6)


def test_machines_of_which_no_device_is_known_are_not_taken_for_equal():
    faster = replace(PROFILE, decode_bytes_per_s=1.2 * PROFILE.decode_bytes_per_s)
    assert PROFILE.as_fast_as_identical([PROFILE, faster]) == PROFILE
    known, equal = replace(PROFILE, devices=("x",)), replace(faster, devices=("x",))
    assert known.as_fast_as_identical([known, equal]).decode_bytes_per_s == faster.decode_bytes_per_s


def test_a_token_of_a_prompt_attends_to_half_of_it(experts):
    """4 heads of 16 + 16 numbers, 256 of 512 tokens."""
    assert cost_of(experts.layers_program(range(1)), {}, 64).attention_macs == 4 * (16 + 16) * 256
