"""out[t, h, e] = x[t, h, e] / sqrt(mean_e(x[t, h, e]^2) + eps) * weight[e], head by head"""

import numpy as np


def rms_norm(x, weight=None, *, eps, head_dim=None):
    x = x.astype(np.float64)
    D, E = x.shape[1], head_dim or x.shape[1]
    weight = np.ones(D) if weight is None else np.resize(weight.astype(np.float64), D)
    out = np.empty_like(x)
    for d in range(0, D, E):
        head = x[:, d : d + E]
        mean_square = np.einsum("te,te->t", head, head)[:, None] / E
        out[:, d : d + E] = head / np.sqrt(mean_square + eps) * weight[d : d + E]
    return out
