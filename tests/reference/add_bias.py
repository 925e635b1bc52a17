"""out[t, n] = x[t, n] + bias[n]"""

import numpy as np


def add_bias(x, bias):
    return x.astype(np.float64) + bias.astype(np.float64)[None, :]
