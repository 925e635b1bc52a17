"""Root-mean-square layer norm: scale each hidden state to unit RMS, then by a learned weight.

    out[t, d] = x[t, d] / sqrt(mean_d(x[t, d]^2) + eps) * weight[d]

Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
Gemma stores ``weight - 1``; that is undone when the file is loaded, not here.
"""

from ollama_zmq.ops.spec import Attr, Input, Op, Output, Weight

RMS_NORM = Op(
    name="rms_norm",
    args={"x": Input("T D"), "weight": Weight("D"), "out": Output("T D")},
    attrs={"eps": Attr(float, 0.0, 1.0)},
    rtol=2e-6,
    atol=1e-6,
)
