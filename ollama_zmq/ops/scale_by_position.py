"""Multiply a query by a number that grows with its position, for contexts beyond those of training.

    out[t, d] = x[t, d] * (1 + beta * ln(1 + floor((positions[t] + offset) / length)))

The factor is taken in float64. Mistral 3: offset 0, length the original context; Llama 4: beta 0.1, offset 1,
length 8192.

Source: Meta 2025, reference code of Llama 4 ("attention temperature tuning").
"""

from ollama_zmq.ops.spec import Attr, Input, Op, Output

SCALE_BY_POSITION = Op(
    name="scale_by_position",
    args={"x": Input("T D"), "positions": Input("T", "int32"), "out": Output("T D")},
    attrs={"beta": Attr(float, -1e3, 1e3), "length": Attr(float, 1.0, 1e9), "offset": Attr(float, 0.0, 1e6)},
    rtol=2e-6,
    atol=1e-6,
    by_row=True,
    in_place=("x",),
)
