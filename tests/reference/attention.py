"""One sequence's attention, token by token. Pages are no matter of this function."""

import numpy as np


def attention(q, k, v, positions, *, n_heads, n_kv_heads, head_dim, scale):
    """q [T, H*E] at *positions* [T]; k [C, G, E], v [C, G, F] of positions 0..C-1, C > every position; [T, H, F]."""
    q = q.astype(np.float64).reshape(len(q), n_kv_heads, n_heads // n_kv_heads, head_dim)
    k, v = k.astype(np.float64), v.astype(np.float64)
    out = np.empty((*q.shape[:3], v.shape[2]))
    for t, position in enumerate(positions):
        score = scale * np.einsum("gje,cge->gjc", q[t], k[: position + 1])
        weight = np.exp(score - score.max(axis=-1, keepdims=True))
        weight /= weight.sum(axis=-1, keepdims=True)
        out[t] = np.einsum("gjc,cge->gje", weight, v[: position + 1])
    return out.reshape(len(q), n_heads, v.shape[2])
