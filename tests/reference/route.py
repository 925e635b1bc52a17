"""The router of a mixture of experts, token by token, with plain numbers."""

import math

import numpy as np


def scores_of(kind, row):
    if kind == "softmax":
        return [1 / sum(math.exp(min(other - logit, 700.0)) for other in row) for logit in row]
    if kind == "sigmoid":
        return [0.5 * (1 + math.tanh(logit / 2)) for logit in row]
    return [math.sqrt(max(logit, 0) + math.log1p(math.exp(-abs(logit)))) for logit in row]


def best(marks, among, count):
    """The *count* of the largest marks, rising."""
    return sorted(sorted(among, key=lambda x: (-marks[x], x))[:count])


def route(logits, bias=None, expert_scale=None, *, n_used, scores="softmax", normalize=1, scale=1.0, groups=(1, 1)):
    """The experts of each token, rising, and their shares: two lists of lists."""
    chosen, shares = [], []
    for row in np.asarray(logits, np.float64).tolist():
        n_groups, n_groups_used = groups
        own = scores_of(scores, row)
        marks = row if bias is None and n_groups == 1 else own
        marks = [mark + (0 if bias is None else float(bias[x])) for x, mark in enumerate(marks)]
        size = len(row) // n_groups
        group_marks = [sum(sorted(marks[g * size : (g + 1) * size])[-2:]) for g in range(n_groups)]
        open_groups = best(group_marks, range(n_groups), n_groups_used)
        experts = best(marks, [x for x in range(len(row)) if x // size in open_groups], n_used)
        total = max(sum(own[x] for x in experts), 2.0**-14) if normalize else 1.0
        chosen.append(experts)
        shares.append([own[x] / total * scale * (1 if expert_scale is None else expert_scale[x]) for x in experts])
    return chosen, shares
