"""out[t, f] = silu(gate[t, f]) * up[t, f], with silu(x) = x * sigmoid(x)"""

import numpy as np


def silu_mul(gate, up):
    gate, up = gate.astype(np.float64), up.astype(np.float64)
    sigmoid = 0.5 * (1 + np.tanh(gate / 2))
    return gate * sigmoid * up
