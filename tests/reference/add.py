"""out[t, d] = a[t, d] + b[t, d]"""

import numpy as np


def add(a, b):
    return a.astype(np.float64) + b.astype(np.float64)
