"""Laws of ``embed`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ollama_zmq.errors import ShapeError
from ollama_zmq.ops.embed import EMBED
from tests.ops.one_op import (
    FEW,
    OPTIONAL_KINDS,
    REQUIRED_KINDS,
    columns,
    drawn,
    plain,
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
