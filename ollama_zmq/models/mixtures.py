"""Mixtures of experts: which ones a token goes through, and what becomes of what they make.

Sources: Shazeer et al. 2017, "Outrageously Large Neural Networks"; Jiang et al. 2024, "Mixtral of Experts"; Dai et al.
2024, "DeepSeekMoE" (experts that every token goes through); DeepSeek-AI 2024, "DeepSeek-V3 Technical Report" (sigmoid,
bias, groups).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ollama_zmq.errors import ShapeError
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.parts import feed_forward, linear
from ollama_zmq.ops.builder import Ops, Value

EXPERTS = {
    "ffn_gate_inp": True,  # X D
    "ffn_gate_exps": True,  # X F D
    "ffn_up_exps": True,  # X F D
    "ffn_down_exps": True,  # X D F
}
EXPERT_BIASES = {
    "ffn_gate_inp.bias": True,  # X
    "ffn_gate_exps.bias": True,  # X F
    "ffn_up_exps.bias": True,  # X F
    "ffn_down_exps.bias": True,  # X D
}
CHOICE_BIAS = {"exp_probs_b.bias": True}  # X
SHARED = {"ffn_gate_shexp": True, "ffn_up_shexp": True, "ffn_down_shexp": True}  # F D, F D, D F
SCORES = {1: "softmax", 2: "sigmoid", 4: "sqrt_softplus"}  # by ``expert_gating_func``
Gate = Callable[[Ops, Value, Value], Value]  # of what the gate and the up matrix make


@dataclass(frozen=True, slots=True)
class Routing:
    """How many experts a token goes through, and how much each of them counts.

    Attributes:
        normalize: shares are divided by their sum.
        scale: by which they are then multiplied.
        n_groups, n_groups_used: of experts; 1 and 1 for none.
    """

    n_experts: int
    n_used: int
    scores: str = "softmax"
    normalize: bool = True
    scale: float = 1.0
    n_groups: int = 1
    n_groups_used: int = 1

    @classmethod
    def of(cls, keys: Keys, *, scores: str = "softmax", normalize: bool = True) -> Routing:
        """Read ``expert_*``; *scores* and *normalize* are what a silent file means.

        Raises:
            ModelFileError: more experts are used than there are, or a kind of scores is not known.
        """
        n_groups = keys.integer("expert_group_count", 1)
        return cls(
            keys.integer("expert_count", 0, least=0),
            used_experts(keys),
            _scores(keys, scores),
            keys.flag("expert_weights_norm", normalize),
            keys.number("expert_weights_scale", 1.0) or 1.0,
            n_groups,
            keys.integer("expert_group_used_count", n_groups),
        )


def _scores(keys: Keys, default: str) -> str:
    number = keys.integer("expert_gating_func", 0, least=0)
    if number and number not in SCORES:
        known = ", ".join(f"{one} ({name})" for one, name in SCORES.items())
        raise keys.error("expert_gating_func", number, f"one of {known}")
    return SCORES.get(number, default)


def used_experts(keys: Keys) -> int:
    """Return how many experts a token uses; 0 where the feed-forward is dense. Raises ModelFileError."""
    n_experts, n_used = keys.integer("expert_count", 0, least=0), keys.integer("expert_used_count", 0, least=0)
    if bool(n_experts) != bool(n_used) or n_used > n_experts:
        raise keys.error("expert_used_count", n_used, f"1 to {keys.prefix}.expert_count = {n_experts}")
    return n_used


def _swiglu(ops: Ops, gate: Value, up: Value) -> Value:
    return ops.gated(gate, up, function="silu")


def experts(ops: Ops, x: Value, w: Mapping[str, Value], routing: Routing, gated: Gate = _swiglu) -> Value:
    """What the best experts of each token make, weighted by their shares [T, D].

    Raises:
        ShapeError: the router has another number of rows than there are experts.
    """
    n, rows = routing.n_used, w["ffn_gate_inp"].shape[0]
    if rows != routing.n_experts:
        raise ShapeError(f"ffn_gate_inp has {rows} rows, but expert_count is {routing.n_experts}")
    chosen, shares = ops.route(
        linear(ops, x, w, "ffn_gate_inp"),
        w.get("exp_probs_b.bias"),
        n_used=n,
        scores=routing.scores,
        normalize=routing.normalize,
        scale=routing.scale,
        n_groups=routing.n_groups,
        n_groups_used=routing.n_groups_used,
    )
    gate = ops.expert_linear(x, chosen, w["ffn_gate_exps"], w.get("ffn_gate_exps.bias"), n_used=n)
    up = ops.expert_linear(x, chosen, w["ffn_up_exps"], w.get("ffn_up_exps.bias"), n_used=n)
    made = gated(ops, gate, up)
    down = ops.expert_linear(made, chosen, w["ffn_down_exps"], w.get("ffn_down_exps.bias"), n_used=n)
    return ops.expert_sum(down, shares)


def shared_expert(ops: Ops, x: Value, w: Mapping[str, Value]) -> Value:
    """What the expert makes that every token goes through [T, D]."""
    return feed_forward(ops, x, w, suffix="_shexp")
