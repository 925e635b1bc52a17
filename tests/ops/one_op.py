"""One op as a whole program, so that every device runs it the way it runs a model.

A program has a single input, so an op's float32 inputs are rows of tables that ``embed`` looks up: table row t is
token t's. The last row of every table is NaN and is run first: whatever a device's scratch memory and caches hold
afterwards is NaN, and an element that the op fails to write shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from ollama_zmq.devices.base import Step
from ollama_zmq.errors import UnsupportedOp
from ollama_zmq.formats.dequantize import dequantize
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.ops.builder import Builder, Value
from ollama_zmq.ops.program import WeightSpec, verify
from ollama_zmq.ops.registry import OPS
from tests.models_tiny import draw_linear

FEW = settings(max_examples=25, deadline=None)
FLOAT_KINDS = ("F32", "F16", "BF16")
REQUIRED_KINDS = (*FLOAT_KINDS, "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
REQUIRED_KINDS += ("Q5_0", "Q5_1", "Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "MXFP4")
OPTIONAL_KINDS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "NVFP4")
seeds = st.integers(0, 2**32 - 1)
rows = st.sampled_from([1, 2, 3, 7, 8, 13, 16, 17, 33])
widths = st.sampled_from([1, 2, 7, 15, 16, 17, 31, 64, 97, 255, 256, 576, 1031])


@dataclass(frozen=True)
class Weight:
    """A weight as a file has it."""

    type: QuantType
    data: bytes
    shape: tuple[int, ...]

    @property
    def values(self):
        """Its numbers as float32."""
        return dequantize(self.type, self.data, self.shape)


def plain(array):
    """Return float32 *array* as an F32 weight."""
    return Weight(QuantType.F32, np.ascontiguousarray(array, np.float32).tobytes(), array.shape)


def drawn(rng, kind, n_rows, n_columns):
    """Return a random weight [n_rows, n_columns] of type *kind*."""
    return Weight(QuantType[kind], draw_linear(rng, kind, n_rows, n_columns).tobytes(), (n_rows, n_columns))


def columns(kind, most=1100):
    """Row lengths that rows of *kind* can have: any for a float type, else whole blocks."""
    block = QuantType[kind].block_size
    return widths if block == 1 else st.integers(1, most // block).map(lambda n_blocks: n_blocks * block)


@contextmanager
def supported_or_refused(kind):
    """Let a device refuse a type that not every device must have, if it names the type."""
    try:
        yield
    except UnsupportedOp as error:
        if kind not in OPTIONAL_KINDS or kind not in str(error):
            raise


def hidden(rng, n_rows, n_columns):
    """Random rows with outlier channels, as real hidden states have."""
    x = rng.normal(size=(n_rows, n_columns)).astype(np.float32)
    x[:, ::7] *= 100
    return x


@contextmanager
def ready(device, program, weights: Mapping[str, Weight], *, kv_pages=1, max_tokens=64):
    """A function that runs the program and copies what it gives; afterwards all is freed and the budget says so."""
    used = device.budget.used
    verified = verify(program)
    loaded = {}
    for spec in program.weights:
        loaded[spec.name] = device.load_weight(spec, memoryview(weights[spec.name].data))
    executable = device.compile(verified, loaded, kv_pages=kv_pages, max_tokens=max_tokens)
    try:
        yield lambda array, step: np.array(executable.run(array, step))  # what it returns is scratch memory
    finally:
        executable.close()
        for weight in loaded.values():
            weight.close()
    assert device.budget.used == used


class Tables:
    """A Builder whose float32 inputs come from tables with one row per token and a last one of NaN."""

    def __init__(self, name: str) -> None:
        self.ops = Builder(name)
        self.token_ids = self.ops.input("token_ids", ("T",), "int32")
        self.weights: dict[str, Weight] = {}

    def weight(self, name: str, weight: Weight) -> Value:
        """Declare a weight of the op."""
        self.weights[name] = weight
        return self.ops.weight(WeightSpec(name, weight.type.id, weight.shape))

    def rows(self, name: str, array: np.ndarray) -> Value:
        """Declare float32 [T, D] whose row t is row ``token_ids[t]`` of *array*."""
        poisoned = np.concatenate([array, np.full_like(array[:1], np.nan)])
        return self.ops.embed(self.token_ids, self.weight(f"table.{name}", plain(poisoned)))


def run_op(device, name, arrays, attrs=None, step=None):
    """Return what *device* makes of one op with one output.

    Args:
        arrays: argument name -> float32 [T, D] for an input, :class:`Weight` for a weight. ``positions`` and ``rows``
            come from *step*. For ``embed``, ``token_ids`` is int32 [T].
        step: one sequence from position 0 on if None.
    """
    op, attrs = OPS[name], attrs or {}
    tables = Tables(name)
    given = {"token_ids": tables.token_ids, "positions": Builder.positions, "rows": Builder.rows}
    args = {}
    for argument in op.names("input", "weight"):
        array = arrays.get(argument)
        if array is None and op.args[argument].optional:
            continue
        if argument in given:
            args[argument] = given[argument]
        elif isinstance(array, Weight):
            args[argument] = tables.weight(argument, array)
        else:
            args[argument] = tables.rows(argument, array)
    program = tables.ops.program("out", tables.ops.apply(name, args, attrs))
    T = max(len(array) for argument, array in arrays.items() if op.args[argument].kind == "input")
    step = step or Step.of([T], [0])
    with ready(device, program, tables.weights, max_tokens=T) as run:
        if "token_ids" in arrays:
            return run(arrays["token_ids"], step)
        run(np.full(T, T, np.int32), step)
        return run(np.arange(T, dtype=np.int32), step)
