"""The sizes that every model has, read from the header's keys."""

from __future__ import annotations

from dataclasses import dataclass

from ollama_zmq.models.keys import Keys


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention of one layer: H query and G key-value heads, H a multiple of G; E numbers a key, F a value."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    value_dim: int

    @property
    def scale(self) -> float:
        """1 / sqrt(E), by which scores are multiplied unless an architecture has its own."""
        return float(self.head_dim**-0.5)

    @property
    def rows(self) -> dict[str, int]:
        """Rows of the three matrices by the name of each, in the order in which a fused one has them."""
        G = self.n_kv_heads
        return {"attn_q": self.n_heads * self.head_dim, "attn_k": G * self.head_dim, "attn_v": G * self.value_dim}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What every model has: layers, the width of the hidden state D, the trained context, epsilon, heads by layer."""

    n_layers: int
    hidden_size: int
    context_length: int
    norm_eps: float
    heads: tuple[Heads, ...]

    @classmethod
    def of(cls, keys: Keys, *, norm: str = "rms", eps: float | None = None) -> Sizes:
        """Read ``block_count``, ``embedding_length``, ``attention.*`` …; *norm* is "rms" or "layer", *eps* a default.

        Raises:
            ModelFileError: a key is missing or impossible.
        """
        hidden_size = keys.integer("embedding_length")
        epsilon = "attention.layer_norm_rms_epsilon" if norm == "rms" else "attention.layer_norm_epsilon"
        return cls(
            n_layers=keys.n_layers,
            hidden_size=hidden_size,
            context_length=keys.integer("context_length"),
            norm_eps=keys.number(epsilon, eps),
            heads=_heads(keys, hidden_size),
        )


def _heads(keys: Keys, hidden_size: int) -> tuple[Heads, ...]:
    n_heads = keys.per_layer("attention.head_count", least=1)
    n_kv_heads = keys.per_layer("attention.head_count_kv", n_heads, least=1)
    head_dim = keys.integer("attention.key_length", hidden_size // max(n_heads))
    value_dim = keys.integer("attention.value_length", head_dim)
    for H, G in zip(n_heads, n_kv_heads, strict=True):
        if H % G:
            raise keys.error("attention.head_count", H, f"a multiple of head_count_kv {G}")
    return tuple(Heads(H, G, head_dim, value_dim) for H, G in zip(n_heads, n_kv_heads, strict=True))
