"""An activation function of every number.

    out[t, d] = f(x[t, d])

    silu        x / (1 + exp(-x))
    gelu_tanh   x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
    gelu_erf    x / 2 * (1 + erf(x / sqrt(2)))
    sigmoid     1 / (1 + exp(-x))
    softplus    ln(1 + exp(x))
    relu        max(x, 0)
    relu2       max(x, 0)^2

Source: Hendrycks & Gimpel 2016, "Gaussian Error Linear Units"; So et al. 2021, "Primer" (relu2).
"""

from ollama_zmq.ops.spec import Attr, Input, Op, Output

FUNCTIONS = ("silu", "gelu_tanh", "gelu_erf", "sigmoid", "softplus", "relu", "relu2")

ACTIVATION = Op(
    name="activation",
    args={"x": Input("T D"), "out": Output("T D")},
    attrs={"function": Attr(str, choices=FUNCTIONS)},
    rtol=3e-6,
    atol=1e-6,
    by_row=True,
    in_place=("x",),
)
