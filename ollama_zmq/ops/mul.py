"""Multiply two hidden states number by number, or each head of one by a number of the other.

out[t, f*E + e] = a[t, f] * b[t, f*E + e]        E = head_dim
"""

from ollama_zmq.ops.spec import Attr, Input, Op, Output

MUL = Op(
    name="mul",
    args={"a": Input("T F"), "b": Input("T F*E"), "out": Output("T F*E")},
    attrs={"head_dim": Attr(int, 1, 1 << 20, symbol="E")},
    rtol=1e-6,
    atol=1e-6,
    by_row=True,
    in_place=("a", "b"),
)
