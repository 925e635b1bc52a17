"""Take the same numbers of every head.

    out[t, h*S + s] = x[t, h*E + start + s]        E = the row's width / n_heads

Latent attention turns a part of each query by its position and multiplies the rest by a matrix.
"""

from collections.abc import Mapping
from typing import Any

from ollama_zmq.ops.spec import Attr, Input, Op, Output, Size


def _rule(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    D, n_heads, end = sizes["D"], attrs["n_heads"], attrs["start"] + attrs["size"]
    if not isinstance(D, int) or D % n_heads:
        return f"x: D={D} is not a multiple of n_heads={n_heads}"
    return f"start+size={end} is more than a head's {D // n_heads}" if end > D // n_heads else ""


TAKE_OF_HEADS = Op(
    name="take_of_heads",
    args={"x": Input("T D"), "out": Output("T H*S")},
    attrs={
        "n_heads": Attr(int, 1, 1024, symbol="H"),
        "start": Attr(int, 0, 1 << 20),
        "size": Attr(int, 1, 1 << 20, symbol="S"),
    },
    rtol=0.0,
    atol=0.0,
    by_row=True,
    rule=_rule,
)
