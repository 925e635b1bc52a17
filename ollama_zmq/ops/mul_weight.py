"""Multiply every row by a learned vector, or by one learned number.

    out[t, d] = x[t, d] * weight[d]        or weight[0], where it has one number

The weight may be of any float type; the product is taken in float32.
"""

from collections.abc import Mapping
from typing import Any

from ollama_zmq.ops.spec import Input, Op, Output, Size, Weight


def _rule(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    D, P = sizes["D"], sizes["P"]
    return "" if P in (1, D) else f"weight: P={P}, expected D={D} or 1"


MUL_WEIGHT = Op(
    name="mul_weight",
    args={"x": Input("T D"), "weight": Weight("P"), "out": Output("T D")},
    rtol=1e-6,
    atol=1e-6,
    by_row=True,
    in_place=("x",),
    rule=_rule,
)
