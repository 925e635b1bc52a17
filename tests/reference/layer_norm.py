"""out[t, h, e] = (x[t, h, e] - mean_e) / sqrt(var_e + eps) * weight[e] + bias[e], head by head"""

import numpy as np


def layer_norm(x, weight=None, bias=None, *, eps, head_dim=None):
    x = x.astype(np.float64)
    D, E = x.shape[1], head_dim or x.shape[1]
    out = np.empty_like(x)
    for d in range(0, D, E):
        head = x[:, d : d + E]
        out[:, d : d + E] = (head - head.mean(axis=1, keepdims=True)) / np.sqrt(head.var(axis=1, keepdims=True) + eps)
    out *= 1 if weight is None else np.resize(weight.astype(np.float64), D)
    return out + (0 if bias is None else np.resize(bias.astype(np.float64), D))
