"""Laws of ``embed`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.errors import ShapeError
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.embed import EMBED
from tests.ops.one_op import (
    FEW,
    OPTIONAL_KINDS,
    REQUIRED_KINDS,
    Tables,
    columns,
    drawn,
    plain,
    ready,
    rows,
    run_op,
    seeds,
    supported_or_refused,
)
from tests.reference.embed import embed


@pytest.mark.parametrize("kind", REQUIRED_KINDS + OPTIONAL_KINDS)
@FEW
@given(T=rows, V=st.integers(1, 70), data=st.data(), seed=seeds)
def test_agrees_with_reference(device, kind, T, V, data, seed):
    rng = np.random.default_rng(seed)
    weight = drawn(rng, kind, V, data.draw(columns(kind)))
    token_ids = rng.integers(0, V, size=T, dtype=np.int32)
    with supported_or_refused(kind):
        out = run_op(device, "embed", {"token_ids": token_ids, "weight": weight})
        assert_allclose(out, embed(token_ids, weight.values), rtol=EMBED.rtol, atol=EMBED.atol)


@pytest.mark.parametrize("token_id", [-1, 5, 2**31 - 1, -(2**31)])
def test_a_token_outside_the_vocabulary_is_refused(device, token_id):
    weight = plain(np.ones((5, 32)))
    token_ids = np.array([0, token_id, 4], np.int32)
    with pytest.raises(ShapeError, match=str(token_id)):
        run_op(device, "embed", {"token_ids": token_ids, "weight": weight})


@pytest.mark.parametrize("start", [0, 3, 4, 2**31 - 4])
def test_rows_may_be_those_of_positions_if_the_table_has_them(device, start):
    """As learned positions have."""
    tables = Tables("positions")
    table = np.arange(6 * 32, dtype=np.float32).reshape(6, 32)
    x = tables.rows("none", np.zeros((3, 32), np.float32))
    at = tables.ops.embed(Builder.positions, tables.weight("table", plain(table)))
    program = tables.ops.program("out", tables.ops.add(x, at))
    with ready(device, program, tables.weights) as run:
        if start + 3 <= 6:
            assert_array_equal(run(np.arange(3, dtype=np.int32), Step.of([3], [start])), table[start : start + 3])
        else:
            with pytest.raises(ShapeError, match=f"positions are {start}"):
                run(np.arange(3, dtype=np.int32), Step.of([3], [start]))
