"""Paged grouped-query attention of each token to its own sequence: itself and what came before, up to ``window``.

    score[t, h, c] = scale * sum_e q[t, h, e] * cache.k[c, h // (H/G), e]    c = position - window + 1 .. position, >= 0
    score          = softcap * tanh(score / softcap)                         where softcap is not 0
    out[t, h, f]   = sum_c softmax_c(score[t, h, c]) * cache.v[c, h // (H/G), f]

``attention_sinks`` has one more learned score per query head, which joins the softmax's denominator and nothing else:

    softmax_c(score) = exp(score[t, h, c]) / (exp(sinks[h]) + sum_c exp(score[t, h, c]))

Paged attention: a sequence's keys and values are found through the step's page table. Partial sums are taken over runs
of pages that begin at fixed positions and combined in their order (flash-decoding, split-KV), so a row does not depend
on what else is in the pass. ``rtol`` is relative to the same sum over |cache.v|: where values cancel, an output may be
small and its error is not. Keys and values are meant as the cache gives them back; over a q8_0 cache ``rtol`` is
``Q8_0_RTOL``, since a kernel may round queries too.

Source: Ainslie et al. 2023, "GQA"; Milakov & Gimelshein 2018, "Online normalizer calculation for softmax"; Gemma Team
2024, "Gemma 2" (soft-cap); Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks".
"""

from collections.abc import Mapping
from typing import Any

from ollama_zmq.ops.spec import Attr, Cache, Input, Op, Output, Size, Weight
from ollama_zmq.ops.state import NO_WINDOW

Q8_0_RTOL = 1e-3


def _rule(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    n_heads, n_kv_heads = attrs["n_heads"], attrs["n_kv_heads"]
    return f"n_heads={n_heads} is not a multiple of n_kv_heads={n_kv_heads}" if n_heads % n_kv_heads else ""


_ATTRS = {
    "n_heads": Attr(int, 1, 1024, symbol="H"),
    "n_kv_heads": Attr(int, 1, 1024, symbol="G"),
    "head_dim": Attr(int, 1, 1024, symbol="E"),
    "value_dim": Attr(int, 1, 1024, symbol="F"),
    "scale": Attr(float, 0.0, 1e3),
    "window": Attr(int, 1, NO_WINDOW),
    "softcap": Attr(float, 0.0, 1e6),
}

ATTENTION = Op(
    name="attention",
    args={"q": Input("T H*E"), "cache": Cache(), "out": Output("T H*F")},
    attrs=_ATTRS,
    rtol=2e-5,
    atol=2e-6,
    uses_pages=True,
    rule=_rule,
)

ATTENTION_SINKS = Op(
    name="attention_sinks",
    args={"q": Input("T H*E"), "cache": Cache(), "sinks": Weight("H"), "out": Output("T H*F")},
    attrs=_ATTRS,
    rtol=2e-5,
    atol=2e-6,
    uses_pages=True,
    rule=_rule,
)
