"""Tokens that came lately are made less likely, as llama.cpp does it.

    logit = logit / repeat, or logit * repeat where it is not positive
    logit = logit - count * frequency - presence

within +-``LARGEST_LOGIT``, for every token that occurs, *count* times, among those looked back at. Any *repeat* is
taken as llama.cpp takes it: 0 makes what came lately the likeliest if its logit was positive, and a negative one turns
signs round. A logit of -inf, a token that may never come, stays so. Source: Keskar et al. 2019, "CTRL", 4.1, with the
sign of the logit respected; frequency and presence as in OpenAI's API.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

LARGEST_LOGIT = 3e38


def penalized(
    logits: npt.NDArray[np.float32], recent: Sequence[int], *, repeat: float, presence: float, frequency: float
) -> npt.NDArray[np.float32]:
    """A copy of float32 [V] with the tokens of *recent* changed; ids beyond V are passed over."""
    ids, counts = np.unique(np.asarray(recent, np.intp), return_counts=True)
    known = ids < len(logits)
    ids, counts = ids[known], counts[known]
    values = logits[ids].astype(np.float64)
    possible = values > -np.inf
    ids, counts, values = ids[possible], counts[possible], values[possible]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # 0 / 0 is not taken, and inf is cut
        values = np.where(values <= 0.0, values * repeat, values / repeat)
    values -= counts * frequency + presence
    copy = logits.copy()
    copy[ids] = np.clip(values, -LARGEST_LOGIT, LARGEST_LOGIT)
    return copy
