"""Multiply every number by one.

    out[t, d] = by * x[t, d]

``by`` is rounded to float32 first.
"""

from ollama_zmq.ops.spec import Attr, Input, Op, Output

SCALE = Op(
    name="scale",
    args={"x": Input("T D"), "out": Output("T D")},
    attrs={"by": Attr(float, -1e9, 1e9)},
    rtol=1e-6,
    atol=1e-6,
    by_row=True,
    in_place=("x",),
)
