"""In a debug build a kernel that is about to leave its memory says so and ends the process (``tox run -e debug``).

Each planted bug runs in a process of its own: a program right in itself is compiled after a size or a number was
falsified, as a fault of planning would do.
"""

import signal
import subprocess
import sys
import textwrap

import pytest

from ollama_zmq.kernels.cpu import program as compiled

BUILD = """
import numpy as np
from ollama_zmq.devices.base import Budget, Step
from ollama_zmq.kernels.cpu import executable, open_device, plan
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import WeightSpec, verify

device, ops, K = open_device(1, Budget(1 << 28)), Builder("p"), 64
x = ops.input("x", ("T", K))

def weight(name, *shape):
    return ops.weight(WeightSpec(name, 0, shape))

def falsify(module, name, change):
    right = getattr(module, name)
    setattr(module, name, lambda *args, **named: change(right(*args, **named)))

def resized(planned, key, nbytes):
    planned.sizes[next(value for value in planned.sizes if key in (value, value[0]))] = nbytes
    return planned

def run(out, T=20, pages=((0,),), kv_pages=1, rows=()):
    verified = verify(ops.program("out", out))
    ones = lambda spec: memoryview(np.ones(spec.shape, "<f4")).cast("B")
    weights = {spec.name: device.load_weight(spec, ones(spec)) for spec in verified.program.weights}
    made = device.compile(verified, weights, kv_pages=kv_pages, max_tokens=64)
    print(made.run(np.ones((T, K), np.float32), Step((T,), (0,), pages, rows)).shape)
"""
EXPERTS = """
routing = ops.linear(x, weight("g", 4, K))
out = ops.expert_linear(x, routing, weight("w", 4, 8, K), n_used=2)
"""
ATTENTION = """
cache = ops.cache("kv", n_kv_heads=1, head_dim=K)
ops.store_kv(x, x, cache, n_kv_heads=1, head_dim=K)
out = ops.attention(x, cache, n_heads=1, n_kv_heads=1, head_dim=K, scale=1.0)
"""
LINEAR = 'out = ops.linear(x, weight("w", 40, K))\n'
PLANTED = {  # what is built, what is falsified: what the check says
    "rows past a value": (
        'out = ops.add(x, x)\nfalsify(executable, "plan", lambda p: resized(p, "v0", 256 * 10))',
        r"(t + 1) * out_width * sizeof(float)",
    ),
    "panels too short": (
        LINEAR + 'falsify(executable, "plan", lambda p: resized(p, "pack", 4 * K * 10))',
        "count * activation_nbytes(op->activation, width)",
    ),
    "an output too short": (
        LINEAR + 'falsify(executable, "plan", lambda p: resized(p, "v0", 4 * 40 * 10))',
        "T * part->N * sizeof(float)",
    ),
    "groups past a weight": (
        LINEAR + "executable.CpuWeight.nbytes = property(lambda self: 4 * K * 16, lambda self, n: None)",
        "part->groups * GROUP_ROWS * row_nbytes(part->format, part->K)",
    ),
    "packed slots too short": (
        EXPERTS + 'falsify(executable, "plan", lambda p: resized(p, "pack_slots", 4 * K * 10))',
        "count * op->n_used * activation_nbytes(op->activation, width)",
    ),
    "a table of slots too short": (
        EXPERTS + 'falsify(executable, "plan", lambda p: resized(p, "slots", 64))',
        "slots_nbytes(T, op->n_experts, op->n_used)",
    ),
    "a cache too short": (
        ATTENTION + 'falsify(executable, "cache_nbytes", lambda n: n // 2)',
        "op->n_heads * page_nbytes(&op->head)",
    ),
}


def outcome(code):
    return subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(BUILD) + code], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("build", [LINEAR, EXPERTS, ATTENTION])
def test_what_is_right_runs(build):
    done = outcome(build + "\nrun(out)")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not compiled.CHECKS_INDICES, reason="kernels of a release check no index: tox run -e debug")
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_ends_the_process_and_is_named(bug):
    code, said = PLANTED[bug]
    done = outcome(f"{code}\nrun(out)")
    assert done.returncode == -signal.SIGABRT
    assert "index out of range" in done.stderr
    assert said in done.stderr
