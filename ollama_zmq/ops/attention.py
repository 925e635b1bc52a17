"""Grouped-query attention of each token to its own sequence, itself and everything before it.

    score[t, h, c] = scale * sum_e q[t, h, e] * cache.k[c, h // (H/G), e]        c = 0..position of t
    out[t, h, e]   = sum_c softmax_c(score[t, h, c]) * cache.v[c, h // (H/G), e]

A sequence's keys and values are found through the step's page table. Partial sums are taken over runs of one page
and combined in page order, so a row does not depend on what else is in the pass. ``rtol`` is relative to the same sum
over |cache.v|: where values cancel, an output may be small and its error is not.

Source: Ainslie et al. 2023, "GQA"; Milakov & Gimelshein 2018, "Online normalizer calculation for softmax".
"""

from collections.abc import Mapping
from typing import Any

from ollama_zmq.ops.spec import Attr, Cache, Input, Op, Output, Size


def _rule(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    n_heads, n_kv_heads = attrs["n_heads"], attrs["n_kv_heads"]
    return f"n_heads={n_heads} is not a multiple of n_kv_heads={n_kv_heads}" if n_heads % n_kv_heads else ""


ATTENTION = Op(
    name="attention",
    args={"q": Input("T H*E"), "cache": Cache(), "out": Output("T H*E")},
    attrs={
        "n_heads": Attr(int, 1, 1024, symbol="H"),
        "n_kv_heads": Attr(int, 1, 1024, symbol="G"),
        "head_dim": Attr(int, 1, 1024, symbol="E"),
        "scale": Attr(float, 0.0, 1e3),
    },
    rtol=2e-5,
    atol=2e-6,
    uses_pages=True,
    rule=_rule,
)
