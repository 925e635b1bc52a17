"""Gate of a SwiGLU feed-forward layer.

    out[t, f] = gate[t, f] / (1 + exp(-gate[t, f])) * up[t, f]

Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 5.
"""

from ollama_zmq.ops.spec import Input, Op, Output

SILU_MUL = Op(
    name="silu_mul",
    args={"gate": Input("T F"), "up": Input("T F"), "out": Output("T F")},
    rtol=3e-6,
    atol=1e-6,
)
