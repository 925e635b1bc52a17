"""A gate: what passes is multiplied by an activation function of another row.

    out[t, f*E + e] = function(gate[t, f]) * up[t, f*E + e]        E = head_dim

The functions are those of ``activation``. ``head_dim`` is 1 where the gate has a number for each of the row, or the
size of a head where it has one for each head (laguna).

Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 5.
"""

from ollama_zmq.ops.activation import FUNCTIONS
from ollama_zmq.ops.spec import Attr, Input, Op, Output

GATED = Op(
    name="gated",
    args={"gate": Input("T F"), "up": Input("T F*E"), "out": Output("T F*E")},
    attrs={"function": Attr(str, choices=FUNCTIONS), "head_dim": Attr(int, 1, 1 << 20, symbol="E")},
    rtol=3e-6,
    atol=1e-6,
    by_row=True,
    in_place=("gate", "up"),
)
