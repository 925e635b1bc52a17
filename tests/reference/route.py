import numpy as np


def route(logits, *, n_used, softmax_over):
    out = np.zeros(logits.shape)
    for t, row in enumerate(logits.astype(np.float64)):
        chosen = sorted(range(len(row)), key=lambda x: (-row[x], x))[:n_used]
        summed = chosen if softmax_over == "chosen" else range(len(row))
        for x in chosen:
            out[t, x] = 1 / sum(np.exp(row[y] - row[x]) for y in summed)
    return out
