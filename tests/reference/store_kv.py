"""What the KV cache gives back for keys or values [T, G*E] that were stored: float16 or q8_0, [T, G, E]."""

import gguf
import numpy as np


def store_kv(rows, *, n_kv_heads, head_dim, kv_type="f16"):
    heads = rows.reshape(len(rows), n_kv_heads, head_dim)
    if kv_type == "f16":
        return heads.astype(np.float16)
    padded = np.pad(heads, ((0, 0), (0, 0), (0, -head_dim % 32)))
    blocks = gguf.quants.quantize(padded, gguf.GGMLQuantizationType.Q8_0)
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)[..., :head_dim]
