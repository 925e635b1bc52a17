"""Choose the experts of each token, and how much each of them counts.

    chosen[t]  = the n_used experts of the largest logits[t], the lowest number among equals
    out[t, x]  = exp(logits[t, x]) / sum_y exp(logits[t, y])    x in chosen[t];  0 elsewhere

``softmax_over`` says which y are summed: "all" experts, or those "chosen", which is a softmax over all whose chosen
shares are divided by their sum (Mixtral). A NaN or +inf among a row's logits makes its shares NaN.

What comes out is a row over all experts rather than a list of numbers: what a program computes is never an index.

Source: Shazeer et al. 2017, "Outrageously Large Neural Networks", eq. 3-5; Jiang et al. 2024, "Mixtral of Experts".
"""

from collections.abc import Mapping
from typing import Any

from ollama_zmq.ops.spec import Attr, Input, Op, Output, Size

MAX_EXPERTS = 1024


def too_few(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    """Return a complaint where more experts are used than there are, or there are too many."""
    n_used, X = attrs["n_used"], sizes["X"]
    if not isinstance(X, int) or X > MAX_EXPERTS:
        return f"{X} experts, at most {MAX_EXPERTS}"
    return f"n_used={n_used} of {X} experts" if n_used > X else ""


ROUTE = Op(
    name="route",
    args={"logits": Input("T X"), "out": Output("T X")},
    attrs={"n_used": Attr(int, 1, MAX_EXPERTS), "softmax_over": Attr(str, choices=("all", "chosen"))},
    rtol=3e-6,
    atol=1e-7,
    by_row=True,
    rule=too_few,
)
