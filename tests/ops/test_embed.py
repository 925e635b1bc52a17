"""Laws of ``embed`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose

from ollama_zmq.errors import ShapeError
from ollama_zmq.ops.embed import EMBED
from tests.ops.one_op import FEW, quantized, rows, run_op, seeds
from tests.reference.embed import embed

KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(T=rows, seed=seeds)
def test_agrees_with_reference(device, kind, T, seed):
    rng = np.random.default_rng(seed)
    V, D = int(rng.integers(1, 70)), 32 * int(rng.integers(1, 5))
    weight = quantized(rng.normal(size=(V, D)), kind)
    token_ids = rng.integers(0, V, size=T, dtype=np.int32)
    out = run_op(device, "embed", {"token_ids": token_ids, "weight": weight})
    assert_allclose(out, embed(token_ids, weight.values), rtol=EMBED.rtol, atol=EMBED.atol)


@pytest.mark.parametrize("token_id", [-1, 5, 2**31 - 1, -(2**31)])
def test_a_token_outside_the_vocabulary_is_refused(device, token_id):
    weight = quantized(np.ones((5, 32)), "F32")
    token_ids = np.array([0, token_id, 4], np.int32)
    with pytest.raises(ShapeError, match=str(token_id)):
        run_op(device, "embed", {"token_ids": token_ids, "weight": weight})
