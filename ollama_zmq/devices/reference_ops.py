"""Every op in NumPy, float64 inside: what the reference device does, each formula as its declaration has it.

Arguments and attributes come by the names of the declaration. Tensors that are read are float32 or int32, weights are
dequantized already; the result is rounded to float32 by who calls. Ops that use the KV cache are given the step too.
Attention's many small products go through ``einsum``: BLAS would wake its threads for each, 15 times slower on a busy
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import erfc
from typing import Any

import numpy as np
import numpy.typing as npt

from ollama_zmq.devices.base import Array, Step
from ollama_zmq.ops.expert_shares import LEAST_SUM
from ollama_zmq.ops.registry import OPS
from ollama_zmq.ops.rope import scales
from ollama_zmq.ops.state import PAGE_SLOTS, PagedKvSpec

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KvCache:
    """The keys [S, G, E] and values [S, G, F] of one layer as they come back, S = pages * PAGE_SLOTS."""

    type: str
    k: Array
    v: Array

    @classmethod
    def empty(cls, spec: PagedKvSpec, kv_pages: int) -> KvCache:
        """Return a cache of zeros."""
        slots = kv_pages * PAGE_SLOTS, spec.n_kv_heads
        dtype = np.float16 if spec.type == "f16" else np.float32
        return cls(spec.type, np.zeros((*slots, spec.head_dim), dtype), np.zeros((*slots, spec.value_dim), dtype))

    def rounded(self, rows: Array) -> Array:
        """Return *rows* [..., E] as this cache gives them back."""
        return rows.astype(np.float16) if self.type == "f16" else _q8_0(rows)


def _q8_0(rows: Array) -> Array:
    """Return rows [..., E] rounded in blocks of 32: d = max|x| / 127, d * round(x / d), d as float16."""
    padded = np.zeros((*rows.shape[:-1], -(-rows.shape[-1] // 32), 32), np.float32)
    padded.reshape(*rows.shape[:-1], -1)[..., : rows.shape[-1]] = rows
    d = np.abs(padded).max(axis=-1, keepdims=True) / np.float32(127)
    q = np.rint(np.divide(padded, d, out=np.zeros_like(padded), where=d != 0))
    rounded: Array = (q * d.astype(np.float16).astype(np.float32)).reshape(*rows.shape[:-1], -1)
    return rounded[..., : rows.shape[-1]]


def embed(token_ids: Array, weight: Array) -> Float64:
    return _float64(weight[token_ids])


def _heads(x: Array, head_dim: int) -> Float64:
    return _float64(x).reshape(len(x), x.shape[1] // head_dim, head_dim)


def _learned(normed: Float64, weight: Array | None, bias: Array | None = None) -> Float64:
    """Rows [T, H, E] times a weight and with a bias of a head or of all, where they are there: [T, H*E]."""
    row = (1, *normed.shape[1:])
    for learned, function in ((weight, np.multiply), (bias, np.add)):
        if learned is not None:
            normed = function(normed, learned if learned.size == row[2] else learned.reshape(row))
    return normed.reshape(len(normed), row[1] * row[2])


def rms_norm(x: Array, weight: Array | None = None, *, eps: float, head_dim: int) -> Float64:
    heads = _heads(x, head_dim)
    return _learned(heads / np.sqrt(np.mean(heads * heads, axis=-1, keepdims=True) + eps), weight)


def layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float, head_dim: int
) -> Float64:
    heads = _heads(x, head_dim)
    centred = heads - np.mean(heads, axis=-1, keepdims=True)
    return _learned(centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + eps), weight, bias)


def l2_norm(x: Array, *, eps: float, head_dim: int) -> Float64:
    heads = _heads(x, head_dim)
    return _learned(heads / np.maximum(np.sqrt(np.sum(heads * heads, axis=-1, keepdims=True)), eps), None)


def linear(x: Array, weight: Array) -> Float64:
    return _float64(x) @ _float64(weight).T


def linear_per_head(x: Array, weight: Array) -> Float64:
    H, N, K = weight.shape
    heads: Float64 = np.einsum("thk,hnk->thn", _float64(x).reshape(len(x), H, K), _float64(weight))
    return heads.reshape(len(x), H * N)


def add(a: Array, b: Array) -> Float64:
    return _float64(a) + b


def add_bias(x: Array, bias: Array) -> Float64:
    return _float64(x) + bias


def mul(a: Array, b: Array, *, head_dim: int) -> Float64:
    return np.repeat(_float64(a), head_dim, axis=1) * b


def mul_weight(x: Array, weight: Array) -> Float64:
    return _float64(x) * weight


def scale(x: Array, *, by: float) -> Float64:
    return _float64(x) * by


def clamp(x: Array, *, limit: float) -> Float64:
    return np.clip(_float64(x), -limit, limit)


def softcap(x: Array, *, cap: float) -> Float64:
    capped: Float64 = cap * np.tanh(_float64(x) / cap)
    return capped


def scale_by_position(x: Array, positions: Array, *, beta: float, length: float, offset: float) -> Float64:
    factors = 1 + beta * np.log(1 + np.floor((_float64(positions) + offset) / length))
    scaled: Float64 = _float64(x) * factors[:, None]
    return scaled


ACTIVATIONS: dict[str, Callable[[Float64], Any]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: x / 2 * np.vectorize(erfc, otypes=[np.float64])(-x / np.sqrt(2)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(x, 0),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


def activation(x: Array, *, function: str) -> Float64:
    activated: Float64 = ACTIVATIONS[function](_float64(x))
    return activated


def gated(gate: Array, up: Array, *, function: str, head_dim: int) -> Float64:
    passed: Float64 = np.repeat(ACTIVATIONS[function](_float64(gate)), head_dim, axis=1) * up
    return passed


def swiglu_clamped(gate: Array, up: Array, *, alpha: float, limit: float) -> Float64:
    g = np.minimum(_float64(gate), limit)
    passed: Float64 = g / (1 + np.exp(-alpha * g)) * (np.clip(_float64(up), -limit, limit) + 1)
    return passed


def xielu(x: Array, *, alpha_p: float, alpha_n: float, beta: float, eps: float) -> Float64:
    x = _float64(x)
    curved = np.where(x > 0, alpha_p * x * x, alpha_n * (np.expm1(np.minimum(x, eps)) - x))
    return curved + beta * x


def rope(
    x: Array,
    positions: Array,
    factors: Array | None = None,
    *,
    n_heads: int,
    head_dim: int,
    rotary_dim: int,
    theta: float,
    scale: float,
    ramp_start: float,
    ramp_end: float,
    magnitude: float,
    pairing: str,
) -> Float64:
    half = rotary_dim // 2
    scaled = scales({"rotary_dim": rotary_dim, "scale": scale, "ramp_start": ramp_start, "ramp_end": ramp_end})
    frequency = theta ** (-2.0 * np.arange(half) / rotary_dim) * scaled
    angle = np.outer(positions, frequency if factors is None else frequency / factors)[:, None, :]
    first = slice(0, rotary_dim, 2) if pairing == "interleaved" else slice(0, half)
    second = slice(1, rotary_dim, 2) if pairing == "interleaved" else slice(half, rotary_dim)
    heads = _float64(x).reshape(len(x), n_heads, head_dim)
    turned, cosine, sine = heads.copy(), magnitude * np.cos(angle), magnitude * np.sin(angle)
    turned[..., first] = heads[..., first] * cosine - heads[..., second] * sine
    turned[..., second] = heads[..., first] * sine + heads[..., second] * cosine
    return turned.reshape(x.shape)


def _softmax(logits: Float64) -> Float64:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    divided: Float64 = shares / shares.sum(axis=1, keepdims=True)
    return divided


SCORES: dict[str, Callable[[Float64], Float64]] = {
    "softmax": _softmax,
    "sigmoid": ACTIVATIONS["sigmoid"],
    "sqrt_softplus": lambda logits: np.sqrt(ACTIVATIONS["softplus"](logits)),
}


def choose_experts(
    logits: Array, bias: Array | None = None, *, n_used: int, scores: str, n_groups: int, n_groups_used: int
) -> Float64:
    marks = _float64(logits)
    if bias is not None or n_groups > 1:
        marks = SCORES[scores](marks) + (0 if bias is None else bias)
    closed = np.zeros(marks.shape, bool)
    if n_groups > 1:
        groups = np.sort(-marks.reshape(len(marks), n_groups, marks.shape[1] // n_groups), axis=2)  # NaN is last
        best = _best(-groups[:, :, :2].sum(axis=2), n_groups_used)
        closed = np.repeat(~best, groups.shape[2], axis=1)
    order = np.lexsort((-marks, np.isnan(marks), closed), axis=1)
    chosen = np.zeros(marks.shape)
    np.put_along_axis(chosen, order[:, :n_used], 1, axis=1)
    return chosen


def _best(marks: Float64, n_used: int) -> npt.NDArray[np.bool_]:
    """Whether a mark is one of the row's n_used largest, the lowest numbers among equals; NaNs come last."""
    best = np.zeros(marks.shape, bool)
    np.put_along_axis(best, np.argsort(-marks, axis=1, kind="stable")[:, :n_used], True, axis=1)
    return best


def expert_shares(
    logits: Array,
    chosen: Array,
    weight: Array | None = None,
    *,
    n_used: int,
    scores: str,
    normalize: int,
    scale: float,
) -> Float64:
    slots = _slots(chosen, n_used)
    shares = np.take_along_axis(SCORES[scores](_float64(logits)), slots, axis=1)
    if normalize:
        shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), LEAST_SUM)
    shares = shares * scale
    return shares if weight is None else shares * weight[slots]


def expert_linear(x: Array, chosen: Array, weight: Array, *, n_used: int) -> Float64:
    K = weight.shape[2]
    inputs = np.broadcast_to(_float64(x).reshape(len(x), x.shape[1] // K, K), (len(x), n_used, K))
    products = [
        [_float64(weight[expert]) @ inputs[t, j] for j, expert in enumerate(slots)]
        for t, slots in enumerate(_slots(chosen, n_used))
    ]
    return np.array(products, np.float64).reshape(len(x), n_used * weight.shape[1])


def expert_bias(x: Array, chosen: Array, bias: Array, *, n_used: int) -> Float64:
    return _float64(x) + bias[_slots(chosen, n_used)].reshape(x.shape)


def expert_sum(x: Array, shares: Array, *, n_used: int, width: int) -> Float64:
    summed: Float64 = np.einsum("tj,tjd->td", _float64(shares), _float64(x).reshape(len(x), n_used, width))
    return summed


def _slots(chosen: Array, n_used: int) -> Array:
    """Return the experts of each row [T, n_used]: those that count, lowest first, then the lowest others."""
    return np.argsort(chosen == 0, axis=1, kind="stable")[:, :n_used]


def take_of_heads(x: Array, *, n_heads: int, start: int, size: int) -> Float64:
    heads = _float64(x).reshape(len(x), n_heads, x.shape[1] // n_heads)
    return heads[:, :, start : start + size].reshape(len(x), n_heads * size)


def join_heads(a: Array, b: Array, *, n_heads: int, head_dim: int) -> Float64:
    parts = [_float64(x).reshape(len(x), n_heads, x.shape[1] // n_heads) for x in (a, b)]
    return np.concatenate(parts, axis=2).reshape(len(a), n_heads * head_dim)


def take_rows(x: Array, rows: Array) -> Float64:
    return _float64(x[rows])


def store_kv(step: Step, k: Array, v: Array, cache: KvCache, *, n_kv_heads: int, head_dim: int, value_dim: int) -> None:
    for rows, start, slots in _sequences(step):
        written = slots[start:]
        cache.k[written] = cache.rounded(k[rows].reshape(-1, n_kv_heads, head_dim))
        cache.v[written] = cache.rounded(v[rows].reshape(-1, n_kv_heads, value_dim))


def attention(
    step: Step,
    q: Array,
    cache: KvCache,
    sinks: Array | None = None,
    *,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    value_dim: int,
    scale: float,
    window: int,
    softcap: float,
) -> Float64:
    out = np.empty((len(q), n_heads, value_dim))
    for rows, start, slots in _sequences(step):
        queries = _float64(q[rows]).reshape(-1, n_heads, head_dim)
        keys, values = _float64(cache.k[slots]), _float64(cache.v[slots])
        behind = start + np.arange(len(queries))[:, None] - np.arange(len(slots))
        seen = (behind >= 0) & (behind < window)
        for h in range(n_heads):
            g = h // (n_heads // n_kv_heads)
            scores = scale * np.einsum("te,ce->tc", queries[:, h], keys[:, g])
            scores = np.where(seen, softcap * np.tanh(scores / softcap) if softcap else scores, -np.inf)
            largest = scores.max(axis=-1, keepdims=True)
            weights = np.exp(scores - largest)
            total = weights.sum(axis=-1, keepdims=True)
            if sinks is not None:
                total += np.exp(_float64(sinks[h]) - largest)
            out[rows, h] = np.einsum("tc,cf->tf", weights, values[:, g]) / total
    return out.reshape(len(q), n_heads * value_dim)


def _sequences(step: Step) -> Iterator[tuple[slice, int, Array]]:
    """Yield each sequence's rows of the pass, its first position, and the cache slot of every position so far."""
    row = 0
    for length, start, pages in zip(step.lengths, step.positions, step.pages, strict=True):
        position = np.arange(start + length)
        slots = np.array(pages, np.int64)[position // PAGE_SLOTS] * PAGE_SLOTS + position % PAGE_SLOTS
        yield slice(row, row + length), start, slots
        row += length


def _float64(array: Array) -> Float64:
    return array.astype(np.float64)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "attention_sinks": attention,
    **{name: globals()[name] for name in OPS if name != "attention_sinks"},
}
