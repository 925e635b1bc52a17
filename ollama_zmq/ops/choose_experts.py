"""Choose the experts of each token.

    mark[t, x]  = scores(logits[t])[x] + bias[x]
    out[t, x]   = 1 for the n_used experts of the largest marks, the lowest numbers among equals;  0 elsewhere

``scores`` are those of ``expert_shares``. Where there is neither a bias nor groups, the marks are the logits
themselves, with which every kind of score rises. The bias weighs in this choice only (DeepSeek-V3 balances its load
with it). With ``n_groups`` above 1, experts stand in so many groups of equal size; a group's mark is the sum of its two
best, and only experts of the ``n_groups_used`` best groups are chosen. A mark that is NaN comes last.

What comes out is a row over all experts rather than a list of numbers: what a program computes is never an index.
How much a chosen expert counts is another value's matter, so that one whose share is 0 stays chosen.

Source: Shazeer et al. 2017, "Outrageously Large Neural Networks", eq. 3-5; DeepSeek-AI 2024,
"DeepSeek-V3 Technical Report", section 2.1.2.
"""

from collections.abc import Mapping
from typing import Any

from ollama_zmq.ops.spec import Attr, Input, Op, Output, Size, Weight

MAX_EXPERTS = 1024
SCORES = ("softmax", "sigmoid", "sqrt_softplus")
N_USED = Attr(int, 1, MAX_EXPERTS, symbol="J")


def too_few(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    """Return a complaint where more experts are used than there are, or there are too many."""
    n_used, X = attrs["n_used"], sizes["X"]
    if not isinstance(X, int) or X > MAX_EXPERTS:
        return f"{X} experts, at most {MAX_EXPERTS}"
    return f"n_used={n_used} of {X} experts" if n_used > X else ""


def _rule(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    X, n_used, n_groups, used = (sizes["X"], *(attrs[name] for name in ("n_used", "n_groups", "n_groups_used")))
    if complaint := too_few(attrs, sizes):
        return complaint
    if not isinstance(X, int) or X % n_groups:
        return f"{X} experts in n_groups={n_groups} groups of equal size"
    if used > n_groups:
        return f"n_groups_used={used} of n_groups={n_groups}"
    allowed = X // n_groups * used
    return f"n_used={n_used} of the {allowed} experts of n_groups_used={used} groups" if n_used > allowed else ""


CHOOSE_EXPERTS = Op(
    name="choose_experts",
    args={"logits": Input("T X"), "bias": Weight("X", optional=True), "out": Output("T X")},
    attrs={
        "n_used": N_USED,
        "scores": Attr(str, choices=SCORES),
        "n_groups": Attr(int, 1, MAX_EXPERTS),
        "n_groups_used": Attr(int, 1, MAX_EXPERTS),
    },
    rtol=0.0,
    atol=0.0,
    by_row=True,
    rule=_rule,
)
