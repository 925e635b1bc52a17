"""Add up what the experts of each token made, each weighted by its share.

out[t, d] = sum_j shares[t, j] * x[t, j*D + d]        j = 0, 1, ... in this order

``rtol`` is that of a thousand terms added one after the other in float32.
"""

from ollama_zmq.ops.choose_experts import N_USED
from ollama_zmq.ops.spec import Attr, Input, Op, Output

EXPERT_SUM = Op(
    name="expert_sum",
    args={"x": Input("T J*D"), "shares": Input("T J"), "out": Output("T D")},
    attrs={"n_used": N_USED, "width": Attr(int, 1, 1 << 20, symbol="D")},
    rtol=2e-5,
    atol=1e-6,
    by_row=True,
)
