"""out[t, d] = x[t, d] / sqrt(mean_d(x[t, d]^2) + eps) * weight[d]"""

import numpy as np


def rms_norm(x, weight, *, eps):
    x = x.astype(np.float64)
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + eps) * weight.astype(np.float64)
