"""The activation function of Apertus.

    out[t, d] = alpha_p * x^2 + beta * x                              x > 0
    out[t, d] = alpha_n * (exp(min(x, eps)) - 1 - x) + beta * x       elsewhere        x = x[t, d]

The attributes are those of the formula: a file may store them before a softplus that makes them positive.

Source: Huang & Schlag 2024, "Deriving Activation Functions Using Integration".
"""

from ollama_zmq.ops.spec import Attr, Input, Op, Output

_FACTOR = Attr(float, -1e4, 1e4)

XIELU = Op(
    name="xielu",
    args={"x": Input("T D"), "out": Output("T D")},
    attrs={"alpha_p": _FACTOR, "alpha_n": _FACTOR, "beta": _FACTOR, "eps": Attr(float, -1.0, 0.0)},
    rtol=3e-6,
    atol=1e-6,
    by_row=True,
    in_place=("x",),
)
