"""Keep the rows that somebody asked for: before the output head, only tokens that will be sampled.

    out[r, d] = x[rows[r], d]

Rows may repeat and come in any order; one outside 0..T-1 is refused before anything is written.
"""

from ollama_zmq.ops.spec import Input, Op, Output

TAKE_ROWS = Op(
    name="take_rows",
    args={"x": Input("T D"), "rows": Input("R", "int32"), "out": Output("R D")},
    rtol=0.0,
    atol=0.0,
    by_row=True,
)
