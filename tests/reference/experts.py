import numpy as np


def slots(routing, n_used):
    """Expert numbers [T, n_used]: those that count, rising, then the lowest that do not."""
    return [
        ([x for x in range(len(row)) if row[x] != 0] + [x for x in range(len(row)) if row[x] == 0])[:n_used]
        for row in routing
    ]


def expert_linear(x, routing, weight, *, n_used):
    K = weight.shape[2]
    out = []
    for row, experts in zip(x.astype(np.float64), slots(routing, n_used), strict=True):
        own = row.reshape(-1, K) if len(row) > K else [row] * n_used
        out.append(np.concatenate([weight[e].astype(np.float64) @ own[j] for j, e in enumerate(experts)]))
    return np.array(out)


def expert_sum(x, routing, *, n_used, width):
    out = np.zeros((len(x), width))
    for t, experts in enumerate(slots(routing, n_used)):
        for j, e in enumerate(experts):
            out[t] += float(routing[t, e]) * x[t, j * width : (j + 1) * width].astype(np.float64)
    return out
