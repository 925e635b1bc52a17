"""Sampling from all V tokens without sorting them, where top_k is off.

Top_p keeps the likeliest until they have a share together, min_p those above a bound, and a draw stops at the token
that reaches u: each needs the head of the sorted tokens only, and the weight of all of them, which takes no order. So a
short head is tried, then a longer one. A distribution so flat that neither suffices is sorted as a whole, and so is one
where the answer hangs on the last digits of that weight: the token is always the one that sorting all would give.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ollama_zmq.engine.filters import Ids, Logits, draw, keep_min_p, largest, total_weight
from ollama_zmq.formats.options import Options

HEADS = (512, 8192)
MAX_RELATIVE_ERROR = 2e-6  # relative error that the weight of all may have; 1e-8 is usual


def drawn_from_head(logits: npt.NDArray[np.float32], options: Options, u: float) -> int | None:
    """The token at *u* of float32 [V] after top_p and min_p, or None where all of them must be sorted to tell."""
    for k in HEADS:
        if k < len(logits):
            ids, values = largest(logits, k)
            token_id = _drawn(ids, values, logits, options, u)
            if token_id is not None:
                return token_id
    return None


def _drawn(ids: Ids, values: Logits, logits: npt.NDArray[np.float32], options: Options, u: float) -> int | None:
    if options.top_p >= 1.0 and options.min_p <= 0.0:
        n = _reaching(values, logits, u, options.temperature, strictly=True)
        return None if n is None else int(ids[n - 1])
    if options.top_p < 1.0:
        n = _reaching(values, logits, options.top_p, 1.0, strictly=False)
    else:
        n = len(ids) if values[-1] < values[0] + np.log(options.min_p) else None
    return None if n is None else draw(*keep_min_p(ids[:n], values[:n], options.min_p), options.temperature, u)


def _reaching(
    values: Logits, logits: npt.NDArray[np.float32], share: float, temperature: float, *, strictly: bool
) -> int | None:
    """How many of *values* it takes to have this share of the weight of all *logits*, or more; None if unsure."""
    with np.errstate(over="ignore"):
        cumulative = np.cumsum(np.exp((values - values[0]) / temperature))
    bound = share * total_weight(logits, float(values[0]), temperature)
    bounds = np.array((bound * (1 - MAX_RELATIVE_ERROR), bound * (1 + MAX_RELATIVE_ERROR)))
    least, most = np.searchsorted(cumulative, bounds, side="right" if strictly else "left").tolist()
    return int(least) + 1 if least == most < len(values) else None
