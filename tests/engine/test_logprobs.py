"""Log-probabilities against their definition in float64."""

from __future__ import annotations

import numpy as np
import pytest

from ollama_zmq.engine.logprobs import token_logprob


class Letters:
    """A tokenizer whose piece of a token is its number."""

    def piece(self, token_id):
        return b"%d" % token_id


@pytest.mark.parametrize("V", [1, 5, 50_000])
@pytest.mark.parametrize("top", [0, 1, 20])
def test_logprobs_are_those_of_the_definition(V, top):
    logits = np.random.default_rng(V).normal(0, 4, V).astype(np.float32)
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    found = token_logprob(Letters(), logits, V // 2, top)
    assert found.logprob == pytest.approx(exact[V // 2], abs=1e-6)
    likeliest = np.argsort(-logits, kind="stable")[:top]
    assert [other.data for other in found.top] == [b"%d" % token_id for token_id in likeliest]
    assert [other.logprob for other in found.top] == pytest.approx(exact[likeliest].tolist(), abs=1e-6)


def test_a_token_that_never_comes_has_no_finite_logprob():
    logits = np.array([0.0, -np.inf], np.float32)
    assert token_logprob(Letters(), logits, 1, 2).logprob == -np.inf
    assert token_logprob(Letters(), logits, 0, 0).logprob == 0.0
