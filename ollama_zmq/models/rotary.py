"""The rotary embedding of a model, as its file asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from ollama_zmq.models.architecture import Given
from ollama_zmq.models.keys import Keys
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class Rope:
    """Turns the first ``rotary_dim`` of every head's ``head_dim`` numbers by position.

    Attributes:
        factors: the tensor outside the layers that has frequency factors, where the file has it.
    """

    head_dim: int
    rotary_dim: int
    theta: float
    pairing: str
    scale: float = 1.0
    factors: str = "rope_freqs"

    @classmethod
    def of(cls, keys: Keys, head_dim: int, *, pairing: str, base: str = "rope.freq_base", theta: float = 1e4) -> Rope:
        """Read ``rope.*``. *pairing* is "interleaved" (2i, 2i + 1) or "halves" (i, i + rotary_dim / 2).

        Raises:
            ModelFileError: a key is impossible, or the file asks for a scaling that we lack.
        """
        rotary_dim = keys.integer("rope.dimension_count", head_dim)
        if rotary_dim % 2 or rotary_dim > head_dim:
            raise keys.error("rope.dimension_count", rotary_dim, f"an even number up to the head's {head_dim}")
        return cls(head_dim, rotary_dim, keys.number(base, theta), pairing, linear_scale(keys))

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
            pairing=self.pairing,
        )


def linear_scale(keys: Keys) -> float:
    """Return the factor on rotary angles: 1, or the inverse of linear scaling.

    A file that has a factor and does not name its type scales linearly, as llama.cpp reads it.

    Raises:
        ModelFileError: the file scales in a way that is neither linear nor by frequency factors.
    """
    kind = keys.word("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "llama3"):
        raise keys.error("rope.scaling.type", repr(kind), "none, linear or llama3: others are not supported")
    if kind != "linear":
        return 1.0
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    if factor < 0:
        raise keys.error("rope.scaling.factor", factor, "a positive number")
    return 1.0 / (factor or 1.0)
