"""out[t, d] = weight[token_ids[t], d]"""

import numpy as np


def embed(token_ids, weight):
    return np.array([weight[token_id] for token_id in token_ids], dtype=np.float64)
