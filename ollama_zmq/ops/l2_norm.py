"""Scale each head, or the whole row, to length 1.

    out[t, h, e] = x[t, h, e] / max(sqrt(sum_e x[t, h, e]^2), eps)

Where a model adds eps under the root (the delta rule's keys), that is ``rms_norm`` with eps / head_dim, without a
weight and times head_dim^-0.5.
"""

from ollama_zmq.ops.heads import HEAD_DIM, heads_and_vectors
from ollama_zmq.ops.spec import Attr, Input, Op, Output

L2_NORM = Op(
    name="l2_norm",
    args={"x": Input("T D"), "out": Output("T D")},
    attrs={"eps": Attr(float, 0.0, 1.0), "head_dim": HEAD_DIM},
    rtol=2e-6,
    atol=1e-6,
    by_row=True,
    in_place=("x",),
    rule=heads_and_vectors,
)
