"""out[t, n] = sum_k x[t, k] * weight[n, k], and the size that its error is measured by."""

import numpy as np


def linear(x, weight):
    return np.einsum("tk,nk->tn", x.astype(np.float64), weight.astype(np.float64))


def linear_scale(x, weight):
    """sqrt(sum_k x^2 * weight^2): how large each output is when signs are random, whatever cancels in this one."""
    return np.sqrt(linear(x.astype(np.float64) ** 2, weight.astype(np.float64) ** 2))
