"""The filters of the sampler, each a plain function over candidates.

Candidates are two arrays: token ids, and their logits in float64 from the largest down; equal logits stand in order of
id. Every filter keeps at least the first. What they keep is what llama.cpp's filters of the same name keep.

    top_k      Fan et al. 2018, "Hierarchical Neural Story Generation"
    typical_p  Meister et al. 2022, "Locally Typical Sampling"
    top_p      Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration"
    min_p      Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling"

What looks at all V is compiled (:mod:`ollama_zmq.kernels.cpu.logits`); the candidates are few and NumPy's.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ollama_zmq.kernels.cpu import logits as compiled

Ids = npt.NDArray[np.intp]
Logits = npt.NDArray[np.float64]
COLDEST = 1e-35  # a temperature whose inverse is a float32


def largest(logits: npt.NDArray[np.float32], k: int) -> tuple[Ids, Logits]:
    """The *k* largest of float32 [V]; all of them when k is 0 or less. A NaN counts as the largest and stands alone."""
    ids: Ids = compiled.largest(_aligned(logits), k)
    return ids, logits[ids].astype(np.float64)


def total_weight(logits: npt.NDArray[np.float32], peak: float, temperature: float = 1.0) -> float:
    """The sum of exp((logit - peak) / temperature) over float32 [V]; *peak* is the largest of them."""
    return float(compiled.exp_sum(_aligned(logits), peak, 1.0 / max(temperature, COLDEST)))


def _aligned(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.require(logits, requirements=("C", "A"))


def softmax(logits: Logits) -> Logits:
    """Probabilities of logits whose first is the largest."""
    weights: Logits = np.exp(logits - logits[0])
    weights /= weights.sum()
    return weights


def keep_typical(ids: Ids, logits: Logits, p: float) -> tuple[Ids, Logits]:
    """Those whose surprise is nearest to the entropy, until they have the probability *p* together."""
    if p >= 1.0:
        return ids, logits
    probabilities = softmax(logits)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probabilities)
        entropy = np.nansum(probabilities * surprise)
        order = np.argsort(np.abs(surprise - entropy), kind="stable")
    n = _reach(probabilities[order], p, side="right")
    kept = np.sort(order[:n])
    return ids[kept], logits[kept]


def keep_top_p(ids: Ids, logits: Logits, p: float) -> tuple[Ids, Logits]:
    """The likeliest, until they have the probability *p* together."""
    if p >= 1.0:
        return ids, logits
    n = _reach(softmax(logits), p, side="left")
    return ids[:n], logits[:n]


def keep_min_p(ids: Ids, logits: Logits, p: float) -> tuple[Ids, Logits]:
    """Those at least *p* times as likely as the likeliest."""
    if p <= 0.0:
        return ids, logits
    n = max(1, int(np.searchsorted(-logits, -(logits[0] + np.log(p)), side="right")))
    return ids[:n], logits[:n]


def draw(ids: Ids, logits: Logits, temperature: float, u: float) -> int:
    """The candidate at *u*, 0 <= u < 1, of the distribution at *temperature* > 0."""
    with np.errstate(over="ignore"):
        cumulative = np.cumsum(np.exp((logits - logits[0]) / temperature))
    # u is at most 1 - 2^-53, which times the total never rounds to the total: the place found exists and has weight
    return int(ids[np.searchsorted(cumulative, u * cumulative[-1], side="right")])


def _reach(probabilities: Logits, p: float, side: Literal["left", "right"]) -> int:
    """How many leading ones it takes to have *p* together: at least that with "left", more with "right"."""
    return min(int(np.searchsorted(np.cumsum(probabilities), p, side=side)) + 1, len(probabilities))
