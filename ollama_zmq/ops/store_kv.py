"""Write the keys and values of this pass into the KV cache.

    cache.k[slot(t), g, e] = k[t, g*E + e],  cache.v[slot(t), g, f] = v[t, g*F + f]

where ``slot(t)`` is the place of token t in the page that the step's page table gives for its position. The cache
rounds as its type says, and ``rtol`` and ``atol`` are float16's:

    f16     to the nearest float16, ties to even
    q8_0    blocks of 32 values of a head: d = max|x| / 127, q = round(x / d), kept as int8, d as float16
"""

from ollama_zmq.ops.spec import Attr, Cache, Input, Op

STORE_KV = Op(
    name="store_kv",
    args={"k": Input("T G*E"), "v": Input("T G*F"), "cache": Cache()},
    attrs={
        "n_kv_heads": Attr(int, 1, 1024, symbol="G"),
        "head_dim": Attr(int, 1, 1024, symbol="E"),
        "value_dim": Attr(int, 1, 1024, symbol="F"),
    },
    rtol=5e-4,
    atol=6e-8,
    uses_pages=True,
)
