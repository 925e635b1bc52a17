"""Layer norm: scale each head, or the whole hidden state, to mean 0 and variance 1, then by a weight, and add a bias.

    out[t, h, e] = (x[t, h, e] - mean_e) / sqrt(variance_e + eps) * weight[e] + bias[e]        means over x[t, h]

The variance is a mean over head_dim numbers. A norm over the whole row has ``head_dim`` = D. Weight and bias are
[head_dim], used for every head, or [D], or not there. ``rtol`` is relative to the largest |out| of the row: near the
mean an output is small and its error is not.

Source: Ba, Kiros & Hinton 2016, "Layer Normalization", eq. 4.
"""

from ollama_zmq.ops.heads import HEAD_DIM, heads_and_vectors
from ollama_zmq.ops.spec import Attr, Input, Op, Output, Weight

LAYER_NORM = Op(
    name="layer_norm",
    args={
        "x": Input("T D"),
        "weight": Weight("P", optional=True),
        "bias": Weight("Q", optional=True),
        "out": Output("T D"),
    },
    attrs={"eps": Attr(float, 0.0, 1.0), "head_dim": HEAD_DIM},
    rtol=2e-6,
    atol=1e-6,
    by_row=True,
    in_place=("x",),
    rule=heads_and_vectors,
)
