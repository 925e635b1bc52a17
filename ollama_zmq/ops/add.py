"""Add two hidden states: the residual connection.

    out[t, d] = a[t, d] + b[t, d]

Both have the same shape; nothing is broadcast.
"""

from ollama_zmq.ops.spec import Input, Op, Output

ADD = Op(
    name="add",
    args={"a": Input("T D"), "b": Input("T D"), "out": Output("T D")},
    rtol=1e-6,
    atol=1e-6,
    by_row=True,
    in_place=("a", "b"),
)
