"""Put the numbers of each head of one row behind those of another's.

out[t, h*S + s] = a[t, h*A + s]             s < A
                  b[t, h*B + s - A]         A <= s < S = A + B, the head_dim
"""

from collections.abc import Mapping
from typing import Any

from ollama_zmq.ops.spec import Attr, Input, Op, Output, Size


def _rule(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    A, B, n_heads, width = sizes["A"], sizes["B"], attrs["n_heads"], attrs["n_heads"] * attrs["head_dim"]
    for name, size in (("a", A), ("b", B)):
        if not isinstance(size, int) or size % n_heads:
            return f"{name}: its {size} numbers are not a multiple of n_heads={n_heads}"
    together = int(A) + int(B)
    return "" if together == width else f"a and b: {together} numbers, expected n_heads*head_dim={width}"


JOIN_HEADS = Op(
    name="join_heads",
    args={"a": Input("T A"), "b": Input("T B"), "out": Output("T H*S")},
    attrs={"n_heads": Attr(int, 1, 1024, symbol="H"), "head_dim": Attr(int, 1, 1 << 20, symbol="S")},
    rtol=0.0,
    atol=0.0,
    by_row=True,
    rule=_rule,
)
