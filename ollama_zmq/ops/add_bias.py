"""Add a learned vector to every row.

    out[t, n] = x[t, n] + bias[n]

The bias may be of any float type; it is added in float32.
"""

from ollama_zmq.ops.spec import Input, Op, Output, Weight

ADD_BIAS = Op(
    name="add_bias",
    args={"x": Input("T N"), "bias": Weight("N"), "out": Output("T N")},
    rtol=1e-6,
    atol=1e-6,
    by_row=True,
    in_place=("x",),
)
