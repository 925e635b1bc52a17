"""One sequence's attention, head by head and token by token. Pages are no matter of this function."""

import numpy as np


def attention(q, k, v, positions, *, n_heads, n_kv_heads, head_dim, scale):
    """q [T, H*E] at *positions* [T]; k and v [C, G, E] of positions 0..C-1, C > every position. Returns [T, H*E]."""
    q = q.astype(np.float64).reshape(len(q), n_heads, head_dim)
    k, v = k.astype(np.float64), v.astype(np.float64)
    out = np.empty_like(q)
    for t, position in enumerate(positions):
        for h in range(n_heads):
            g = h // (n_heads // n_kv_heads)
            score = k[: position + 1, g] @ q[t, h] * scale
            weight = np.exp(score - score.max())
            out[t, h] = weight @ v[: position + 1, g] / weight.sum()
    return out.reshape(len(q), n_heads * head_dim)
