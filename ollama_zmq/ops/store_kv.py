"""Write the keys and values of this pass into the KV cache.

    cache.k[slot(t), g, e] = k[t, g*E + e],  cache.v the same

where ``slot(t)`` is the place of token t in the page that the step's page table gives for its position. The cache holds
float16; rounding is to nearest even.
"""

from ollama_zmq.ops.spec import Attr, Cache, Input, Op

STORE_KV = Op(
    name="store_kv",
    args={"k": Input("T G*E"), "v": Input("T G*E"), "cache": Cache()},
    attrs={"n_kv_heads": Attr(int, 1, 1024, symbol="G"), "head_dim": Attr(int, 1, 1024, symbol="E")},
    rtol=5e-4,
    atol=6e-8,
    uses_pages=True,
)
