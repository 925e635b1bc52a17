import numpy as np


def slots(chosen, n_used):
    """Expert numbers [T, n_used]: those that are chosen, rising, then the lowest that are not."""
    return [
        ([x for x in range(len(row)) if row[x] != 0] + [x for x in range(len(row)) if row[x] == 0])[:n_used]
        for row in chosen
    ]


def expert_linear(x, chosen, weight, *, n_used):
    K = weight.shape[2]
    out = []
    for row, experts in zip(x.astype(np.float64), slots(chosen, n_used), strict=True):
        own = row.reshape(-1, K) if len(row) > K else [row] * n_used
        out.append(np.concatenate([weight[e].astype(np.float64) @ own[j] for j, e in enumerate(experts)]))
    return np.array(out)


def expert_bias(x, chosen, bias, *, n_used):
    added = [np.concatenate([bias[e] for e in experts]) for experts in slots(chosen, n_used)]
    return x.astype(np.float64) + np.array(added)


def expert_sum(x, shares):
    width = x.shape[1] // shares.shape[1]
    out = np.zeros((len(x), width))
    for j in range(shares.shape[1]):
        out += shares[:, j : j + 1].astype(np.float64) * x[:, j * width : (j + 1) * width]
    return out
