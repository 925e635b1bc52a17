"""Root-mean-square layer norm: scale each head, or the whole hidden state, to unit RMS, then by a learned weight.

    out[t, h, e] = x[t, h, e] / sqrt(mean_e(x[t, h, e]^2) + eps) * weight[e]

A norm over the whole row has ``head_dim`` = D. The weight is [head_dim], used for every head, or [D], or not there.

Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
Gemma stores ``weight - 1``; that is undone when the file is made, not here.
"""

from ollama_zmq.ops.heads import HEAD_DIM, heads_and_vectors
from ollama_zmq.ops.spec import Attr, Input, Op, Output, Weight

RMS_NORM = Op(
    name="rms_norm",
    args={"x": Input("T D"), "weight": Weight("P", optional=True), "out": Output("T D")},
    attrs={"eps": Attr(float, 0.0, 1.0), "head_dim": HEAD_DIM},
    rtol=2e-6,
    atol=1e-6,
    by_row=True,
    in_place=("x",),
    rule=heads_and_vectors,
)
