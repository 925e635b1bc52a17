"""The rotary embedding of a model, as its file asks for it.

Sources: Su et al. 2021, "RoFormer"; Peng et al. 2023, "YaRN"; Ding et al. 2024, "LongRoPE" (long and short factors).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log, pi

from ollama_zmq.models.architecture import Given
from ollama_zmq.models.keys import Keys
from ollama_zmq.ops.builder import Ops, Value

SCALINGS = ("none", "linear", "yarn", "longrope", "llama3")  # the last two by factors in a tensor
BETA_FAST, BETA_SLOW = 32.0, 1.0
Ramp = tuple[float, float]
EVERY_PAIR: Ramp = (-1.0, -1.0)


@dataclass(frozen=True, slots=True)
class Rope:
    """Turns the first ``rotary_dim`` of every head's ``head_dim`` numbers by position.

    Attributes:
        scale: by which the angles of a stretched context shrink; from pair ``ramp[0]`` on more and more, from
            ``ramp[1]`` on wholly.
        magnitude: of cosines and sines.
        factors: the tensor outside the layers that has frequency factors, where the file has it.
    """

    head_dim: int
    rotary_dim: int
    theta: float
    pairing: str
    scale: float = 1.0
    ramp: Ramp = EVERY_PAIR
    magnitude: float = 1.0
    factors: str = "rope_freqs"

    @classmethod
    def of(cls, keys: Keys, head_dim: int, *, pairing: str, base: str = "rope.freq_base", theta: float = 1e4) -> Rope:
        """Read ``rope.*``. *pairing* is "interleaved" (2i, 2i + 1) or "halves" (i, i + rotary_dim / 2).

        Raises:
            ModelFileError: a key is impossible, or the file asks for a scaling that we lack.
        """
        rotary_dim = rotary_size(keys, head_dim)
        theta = keys.number(base, theta)
        if not theta >= 1.0:
            raise keys.error(base, theta, "a number from 1")
        kind = keys.word("rope.scaling.type", "linear")
        if kind not in SCALINGS:
            raise keys.error("rope.scaling.type", repr(kind), f"one of {', '.join(SCALINGS)}")
        if kind == "yarn":
            return cls(head_dim, rotary_dim, theta, pairing, *yarn(keys, rotary_dim, theta))
        return cls(head_dim, rotary_dim, theta, pairing, linear_scale(keys) if kind == "linear" else 1.0)

    def __call__(self, ops: Ops, x: Value, given: Given, n_heads: int) -> Value:
        """Heads [T, H*E] -> the same, turned; *n_heads* is H, or G of keys."""
        return ops.rope(
            x,
            given.positions,
            given.globals.get(self.factors),
            n_heads=n_heads,
            head_dim=self.head_dim,
            rotary_dim=self.rotary_dim,
            theta=self.theta,
            scale=self.scale,
            ramp=self.ramp,
            magnitude=self.magnitude,
            pairing=self.pairing,
        )


def rotary_size(keys: Keys, head_dim: int, key: str = "rope.dimension_count") -> int:
    """Return how many numbers of a head are turned. Raises ModelFileError if they are odd or more than it has."""
    rotary_dim = keys.integer(key, head_dim)
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise keys.error(key, rotary_dim, f"an even number up to the head's {head_dim}")
    return rotary_dim


def linear_scale(keys: Keys) -> float:
    """Return the factor on rotary angles: 1, or the inverse of linear scaling.

    A file that has a factor and does not name its type scales linearly, as llama.cpp reads it.
    """
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    if factor < 0:
        raise keys.error("rope.scaling.factor", factor, "a positive number")
    return 1.0 / (factor or 1.0)


def yarn(keys: Keys, rotary_dim: int, theta: float) -> tuple[float, Ramp, float]:
    """Return scale, ramp and magnitude of YaRN. Its corners are whole pairs, as in llama.cpp.

    A head's pair i turns ``original / (2 pi theta^(2i / rotary_dim))`` times over the original context; those that turn
    more than ``beta_fast`` times stay, those that turn less than ``beta_slow`` times are stretched.
    """
    factor = keys.number("rope.scaling.factor", 1.0)
    if not factor >= 1.0:
        raise keys.error("rope.scaling.factor", factor, "a number from 1")
    original = keys.integer("rope.scaling.original_context_length", keys.integer("context_length"))
    fast = keys.number("rope.scaling.yarn_beta_fast", BETA_FAST)
    slow = keys.number("rope.scaling.yarn_beta_slow", BETA_SLOW)
    if not 0.0 < slow <= fast:
        raise keys.error("rope.scaling.yarn_beta_slow", slow, f"a positive number up to yarn_beta_fast {fast}")

    def corner(turns: float) -> float:
        return rotary_dim * log(original / (turns * 2 * pi)) / (2 * log(max(theta, 1.0 + 1e-6)))

    start, end = max(0, floor(corner(fast))), min(rotary_dim - 1, ceil(corner(slow)))
    return 1.0 / factor, (float(start), float(max(start, end))), yarn_magnitude(keys, factor)


def yarn_magnitude(keys: Keys, factor: float) -> float:
    """Return what cosines and sines are multiplied with: 1 + 0.1 ln(factor), by the file's own factors."""
    magnitude = (1.0 + 0.1 * log(factor)) * keys.number("rope.scaling.attn_factor", 1.0)
    return magnitude / (1.0 + 0.1 * keys.number("rope.scaling.yarn_log_multiplier", 0.0) * log(factor))
