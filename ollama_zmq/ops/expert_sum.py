"""Add up what the experts of each token made, each weighted by its routing.

    out[t, d] = sum_j routing[t, slots[t, j]] * x[t, j*D + d]        j = 0, 1, ... in this order

Slots are those of ``expert_linear``.
"""

from ollama_zmq.ops.route import MAX_EXPERTS, too_few
from ollama_zmq.ops.spec import Attr, Input, Op, Output

EXPERT_SUM = Op(
    name="expert_sum",
    args={"x": Input("T J*D"), "routing": Input("T X"), "out": Output("T D")},
    attrs={"n_used": Attr(int, 1, MAX_EXPERTS, symbol="J"), "width": Attr(int, 1, 1 << 20, symbol="D")},
    rtol=2e-6,
    atol=1e-6,
    by_row=True,
    rule=too_few,
)
