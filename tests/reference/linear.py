"""out[t, n] = sum_k x[t, k] * weight[n, k], and the size that its error is measured by."""

import numpy as np


def linear(x, weight):
    return np.einsum("tk,nk->tn", x.astype(np.float64), weight.astype(np.float64))


def linear_scale(x, weight):
    """sqrt(sum_k x^2 * weight^2): how large each output is when signs are random, whatever cancels in this one."""
    return np.sqrt(linear(x.astype(np.float64) ** 2, weight.astype(np.float64) ** 2))


def rounding_error(x, weight, block):
    """Standard deviation of each output's error when x is rounded to 255 steps in blocks of *block* values."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    step = np.abs(x.reshape(len(x), -1, block)).max(axis=-1) / 127
    weight_square = (weight**2).reshape(len(weight), -1, block).sum(axis=-1)
    return np.sqrt(step**2 / 12 @ weight_square.T)
