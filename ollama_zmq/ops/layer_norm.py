"""Layer norm: scale each hidden state to mean 0 and variance 1, then by a learned weight.

    out[t, d] = (x[t, d] - mean_d(x[t, d])) / sqrt(variance_d(x[t, d]) + eps) * weight[d]

The variance is that of the row itself, a mean over D. A learned bias is added by ``add_bias``. ``rtol`` is relative to
the largest |out| of the row: near the mean an output is small and its error is not.

Source: Ba, Kiros & Hinton 2016, "Layer Normalization", eq. 4.
"""

from ollama_zmq.ops.spec import Attr, Input, Op, Output, Weight

LAYER_NORM = Op(
    name="layer_norm",
    args={"x": Input("T D"), "weight": Weight("D"), "out": Output("T D")},
    attrs={"eps": Attr(float, 0.0, 1.0)},
    rtol=2e-6,
    atol=1e-6,
)
