"""Look up the embedding of each token.

    out[t, d] = weight[token_ids[t], d]

A token id outside 0..V-1 is refused before anything is written.
"""

from ollama_zmq.ops.spec import Input, Op, Output, Weight

EMBED = Op(
    name="embed",
    args={"token_ids": Input("T", "int32"), "weight": Weight("V D"), "out": Output("T D")},
    rtol=1e-6,
    atol=0.0,
    by_row=True,
)
