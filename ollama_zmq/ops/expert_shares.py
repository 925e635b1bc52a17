"""How much each of a token's experts counts.

    share[t, j] = scores(logits[t])[slots[t, j]]
    share[t, j] = share[t, j] / max(sum_i share[t, i], 2^-14)                  where normalize is 1
    out[t, j]   = share[t, j] * scale * weight[slots[t, j]]                    the weight 1 where there is none

    softmax        exp(logits[x]) / sum_y exp(logits[y])                       over all experts
    sigmoid        1 / (1 + exp(-logits[x]))
    sqrt_softplus  sqrt(ln(1 + exp(logits[x])))

Slots are those of ``expert_linear``. A softmax over the chosen alone (Mixtral, gpt-oss) is one over all, normalized. A
NaN or +inf among a row's logits makes all its softmax shares NaN. The bound of the sum is llama.cpp's, the least normal
float16.

Source: Shazeer et al. 2017, "Outrageously Large Neural Networks", eq. 3-5; Jiang et al. 2024, "Mixtral of Experts".
"""

from ollama_zmq.ops.choose_experts import N_USED, SCORES, too_few
from ollama_zmq.ops.spec import Attr, Input, Op, Output, Weight

LEAST_SUM = 2.0**-14

EXPERT_SHARES = Op(
    name="expert_shares",
    args={
        "logits": Input("T X"),
        "chosen": Input("T X"),
        "weight": Weight("X", optional=True),
        "out": Output("T J"),
    },
    attrs={
        "n_used": N_USED,
        "scores": Attr(str, choices=SCORES),
        "normalize": Attr(int, 0, 1),
        "scale": Attr(float, -1e6, 1e6),
    },
    rtol=5e-6,
    atol=1e-7,
    by_row=True,
    rule=too_few,
)
