"""One sequence's attention, token by token. Pages are no matter of this function."""

import numpy as np


def attention(q, k, v, positions, *, n_heads, n_kv_heads, head_dim, scale, window=None, softcap=0, sinks=None):
    """q [T, H*E] at *positions* [T]; k [C, G, E], v [C, G, F] of positions 0..C-1, C > every position; [T, H, F]."""
    group = n_heads // n_kv_heads
    q = q.astype(np.float64).reshape(len(q), n_kv_heads, group, head_dim)
    k, v = k.astype(np.float64), v.astype(np.float64)
    out = np.empty((*q.shape[:3], v.shape[2]))
    for t, position in enumerate(positions):
        seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
        score = scale * np.einsum("gje,cge->gjc", q[t], k[seen])
        if softcap:
            score = softcap * np.tanh(score / softcap)
        if sinks is not None:
            score = np.concatenate([score, sinks.astype(np.float64).reshape(n_kv_heads, group, 1)], axis=-1)
        weight = np.exp(score - score.max(axis=-1, keepdims=True))
        weight /= weight.sum(axis=-1, keepdims=True)
        out[t] = np.einsum("gjc,cge->gje", weight[..., : len(v[seen])], v[seen])
    return out.reshape(len(q), n_heads, v.shape[2])
