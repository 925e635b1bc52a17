"""The ops as methods, and the Builder that records them.

An architecture is written against :class:`Ops` and reads like the paper. Run under a :class:`Builder` it records a
:class:`~ollama_zmq.ops.program.Program`; nothing is computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ollama_zmq.errors import OpError
from ollama_zmq.ops.program import POSITIONS, ROWS, Call, Program, TensorSpec, WeightSpec, verify
from ollama_zmq.ops.registry import op_digests, op_named
from ollama_zmq.ops.spec import Shape
from ollama_zmq.ops.state import NO_WINDOW, PagedKvSpec, StateSpec


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that will exist when the program runs.

    Attributes:
        shape: its sizes; "T" and "R" stay open.
        dtype: "float32", "int32", "any" for a weight, "kv" or "slot" for a state.
    """

    name: str
    shape: Shape
    dtype: str = "float32"


Attrs = dict[str, int | float | str]


def _given(**args: Value | None) -> dict[str, Value]:
    """The arguments that are there."""
    return {name: value for name, value in args.items() if value is not None}


def _width(x: Value) -> int:
    """The numbers of a row of *x*."""
    return int(x.shape[1]) if len(x.shape) == 2 else 0


def _times(x: Value, narrower: Value) -> int:
    """How often the numbers of *narrower* go into those of *x*, 1 where they do not."""
    return max(1, _width(x) // max(1, _width(narrower)))


class Ops(ABC):
    """Every op as a method that returns its output."""

    @abstractmethod
    def apply(self, op: str, args: dict[str, Value], attrs: Attrs) -> Value:
        """Carry out or record one op and return its output (the last argument of an op without one)."""

    def embed(self, token_ids: Value, weight: Value) -> Value:
        return self.apply("embed", {"token_ids": token_ids, "weight": weight}, {})

    def rms_norm(self, x: Value, weight: Value | None = None, *, eps: float, head_dim: int | None = None) -> Value:
        """Over each head of *head_dim* numbers, over the whole row if None."""
        return self.apply("rms_norm", _given(x=x, weight=weight), {"eps": eps, "head_dim": head_dim or _width(x)})

    def layer_norm(
        self,
        x: Value,
        weight: Value | None = None,
        bias: Value | None = None,
        *,
        eps: float,
        head_dim: int | None = None,
    ) -> Value:
        """Over each head of *head_dim* numbers, over the whole row if None."""
        attrs: Attrs = {"eps": eps, "head_dim": head_dim or _width(x)}
        return self.apply("layer_norm", _given(x=x, weight=weight, bias=bias), attrs)

    def l2_norm(self, x: Value, *, eps: float, head_dim: int | None = None) -> Value:
        """Of each head of *head_dim* numbers, of the whole row if None."""
        return self.apply("l2_norm", {"x": x}, {"eps": eps, "head_dim": head_dim or _width(x)})

    def linear(self, x: Value, weight: Value, bias: Value | None = None) -> Value:
        """``x @ weight.T``, and the bias where the file has one."""
        out = self.apply("linear", {"x": x, "weight": weight}, {})
        return out if bias is None else self.apply("add_bias", {"x": out, "bias": bias}, {})

    def linear_per_head(self, x: Value, weight: Value) -> Value:
        """``x[h] @ weight[h].T`` for each head h of a row."""
        return self.apply("linear_per_head", {"x": x, "weight": weight}, {})

    def add(self, a: Value, b: Value) -> Value:
        return self.apply("add", {"a": a, "b": b}, {})

    def mul(self, a: Value, b: Value) -> Value:
        """*b* times *a*; each number of a narrower *a* stands for a head of *b*."""
        return self.apply("mul", {"a": a, "b": b}, {"head_dim": _times(b, a)})

    def mul_weight(self, x: Value, weight: Value) -> Value:
        """By a vector [D], or by one number [1]."""
        return self.apply("mul_weight", {"x": x, "weight": weight}, {})

    def scale(self, x: Value, *, by: float) -> Value:
        return self.apply("scale", {"x": x}, {"by": by})

    def clamp(self, x: Value, *, limit: float) -> Value:
        return self.apply("clamp", {"x": x}, {"limit": limit})

    def softcap(self, x: Value, *, cap: float) -> Value:
        return self.apply("softcap", {"x": x}, {"cap": cap})

    def scale_by_position(
        self, x: Value, positions: Value, *, beta: float, length: float, offset: float = 0.0
    ) -> Value:
        attrs: Attrs = {"beta": beta, "length": length, "offset": offset}
        return self.apply("scale_by_position", {"x": x, "positions": positions}, attrs)

    def activation(self, x: Value, *, function: str) -> Value:
        """*function* is one of ``activation.FUNCTIONS``."""
        return self.apply("activation", {"x": x}, {"function": function})

    def gated(self, gate: Value, up: Value, *, function: str) -> Value:
        """*up* times the function of the gate; each number of a narrower gate stands for a head of *up*."""
        return self.apply("gated", {"gate": gate, "up": up}, {"function": function, "head_dim": _times(up, gate)})

    def swiglu_clamped(self, gate: Value, up: Value, *, alpha: float, limit: float) -> Value:
        return self.apply("swiglu_clamped", {"gate": gate, "up": up}, {"alpha": alpha, "limit": limit})

    def xielu(self, x: Value, *, alpha_p: float, alpha_n: float, beta: float, eps: float) -> Value:
        attrs: Attrs = {"alpha_p": alpha_p, "alpha_n": alpha_n, "beta": beta, "eps": eps}
        return self.apply("xielu", {"x": x}, attrs)

    def rope(
        self,
        x: Value,
        positions: Value,
        factors: Value | None,
        *,
        n_heads: int,
        head_dim: int,
        rotary_dim: int,
        theta: float,
        scale: float = 1.0,
        ramp: tuple[float, float] = (-1.0, -1.0),
        magnitude: float = 1.0,
        pairing: str = "interleaved",
    ) -> Value:
        """Pairs of numbers turned by position; *scale* sets in along *ramp*, from the first pair on if that is -1."""
        attrs: Attrs = {
            "n_heads": n_heads,
            "head_dim": head_dim,
            "rotary_dim": rotary_dim,
            "theta": theta,
            "scale": scale,
            "ramp_start": ramp[0],
            "ramp_end": ramp[1],
            "magnitude": magnitude,
            "pairing": pairing,
        }
        return self.apply("rope", _given(x=x, positions=positions, factors=factors), attrs)

    def store_kv(
        self, k: Value, v: Value, cache: Value, *, n_kv_heads: int, head_dim: int, value_dim: int | None = None
    ) -> None:
        """Keys of *head_dim* and values of *value_dim* numbers, the same if None, into the cache."""
        attrs: Attrs = {
            "n_kv_heads": n_kv_heads,
            "head_dim": head_dim,
            "value_dim": head_dim if value_dim is None else value_dim,
        }
        self.apply("store_kv", {"k": k, "v": v, "cache": cache}, attrs)

    def attention(
        self,
        q: Value,
        cache: Value,
        sinks: Value | None = None,
        *,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        scale: float,
        window: int | None = None,
        softcap: float = 0.0,
    ) -> Value:
        """To the last *window* slots, all if None; *softcap* 0 is none."""
        attrs: Attrs = {
            "n_heads": n_heads,
            "n_kv_heads": n_kv_heads,
            "head_dim": head_dim,
            "value_dim": head_dim if value_dim is None else value_dim,
            "scale": scale,
            "window": NO_WINDOW if window is None else window,
            "softcap": softcap,
        }
        if sinks is None:
            return self.apply("attention", {"q": q, "cache": cache}, attrs)
        return self.apply("attention_sinks", {"q": q, "cache": cache, "sinks": sinks}, attrs)

    def route(
        self,
        logits: Value,
        bias: Value | None = None,
        expert_scale: Value | None = None,
        *,
        n_used: int,
        scores: str = "softmax",
        normalize: bool = True,
        scale: float = 1.0,
        n_groups: int = 1,
        n_groups_used: int = 1,
    ) -> tuple[Value, Value]:
        """Return which experts each row is routed to [T, X], and their shares [T, n_used].

        Args:
            bias: [X], weighs in the choice and not in the shares.
            expert_scale: [X], what each expert's share is multiplied with.
        """
        attrs: Attrs = {"n_used": n_used, "scores": scores}
        groups: Attrs = {"n_groups": n_groups, "n_groups_used": n_groups_used}
        chosen = self.apply("choose_experts", _given(logits=logits, bias=bias), attrs | groups)
        args = _given(logits=logits, chosen=chosen, weight=expert_scale)
        return chosen, self.apply("expert_shares", args, attrs | {"normalize": int(normalize), "scale": scale})

    def expert_linear(self, x: Value, chosen: Value, weight: Value, bias: Value | None = None, *, n_used: int) -> Value:
        """``x @ weight[expert].T`` and its bias for each expert that a row is routed to, one behind the other."""
        out = self.apply("expert_linear", {"x": x, "chosen": chosen, "weight": weight}, {"n_used": n_used})
        return out if bias is None else self.expert_bias(out, chosen, bias, n_used=n_used)

    def expert_bias(self, x: Value, chosen: Value, bias: Value, *, n_used: int) -> Value:
        return self.apply("expert_bias", {"x": x, "chosen": chosen, "bias": bias}, {"n_used": n_used})

    def expert_sum(self, x: Value, shares: Value) -> Value:
        """The sum of each row's slots, weighted by its shares [T, n_used]."""
        attrs: Attrs = {"n_used": _width(shares), "width": _times(x, shares)}
        return self.apply("expert_sum", {"x": x, "shares": shares}, attrs)

    def take_of_heads(self, x: Value, *, n_heads: int, start: int, size: int) -> Value:
        """Numbers *start* to *start* + *size* of every head."""
        return self.apply("take_of_heads", {"x": x}, {"n_heads": n_heads, "start": start, "size": size})

    def join_heads(self, a: Value, b: Value, *, n_heads: int) -> Value:
        """Every head of *a* with that of *b* behind it."""
        attrs: Attrs = {"n_heads": n_heads, "head_dim": (_width(a) + _width(b)) // n_heads}
        return self.apply("join_heads", {"a": a, "b": b}, attrs)

    def take_rows(self, x: Value, rows: Value) -> Value:
        return self.apply("take_rows", {"x": x, "rows": rows}, {})


class Builder(Ops):
    """Records what an architecture does with its one input, its weights and its states."""

    positions = Value(POSITIONS, ("T",), "int32")
    rows = Value(ROWS, ("R",), "int32")

    def __init__(self, name: str) -> None:
        self.name = name
        self._inputs: list[TensorSpec] = []
        self._weights: dict[str, WeightSpec] = {}
        self._states: list[StateSpec] = []
        self._calls: list[Call] = []

    def input(self, name: str, shape: Shape, dtype: str = "float32") -> Value:
        """Declare the tensor that enters with every step."""
        self._inputs.append(TensorSpec(name, dtype, shape))
        return Value(name, shape, dtype)

    def weight(self, spec: WeightSpec) -> Value:
        """Declare a weight; declaring the same one again is the same weight."""
        if self._weights.setdefault(spec.name, spec) != spec:
            raise OpError(
                f"weight {spec.name!r} is declared twice: {self._weights[spec.name]} and {spec}", value=spec.name
            )
        return Value(spec.name, spec.shape, "any")

    def cache(
        self, name: str, *, n_kv_heads: int, head_dim: int, value_dim: int | None = None, kv_type: str = "f16"
    ) -> Value:
        """Declare the KV cache of one layer, of group 0; values are as long as keys if *value_dim* is None."""
        value_dim = head_dim if value_dim is None else value_dim
        return self.state(PagedKvSpec(name, n_kv_heads, head_dim, value_dim, kv_type))

    def state(self, spec: StateSpec) -> Value:
        """Declare what a layer keeps of its sequences; declaring the same one again is the same state."""
        declared = {state.name: state for state in self._states}
        if spec.name not in declared:
            self._states.append(spec)
        elif declared[spec.name] != spec:
            raise OpError(f"state {spec.name!r} is declared twice: {declared[spec.name]} and {spec}", value=spec.name)
        return Value(spec.name, spec.shape, "kv" if isinstance(spec, PagedKvSpec) else "slot")

    def apply(self, op: str, args: dict[str, Value], attrs: Attrs) -> Value:
        declared = op_named(op)
        names = {name: value.name for name, value in args.items()}
        try:
            shapes = declared.infer({name: value.shape for name, value in args.items()}, attrs)
        except OpError as error:
            where = f"{op} of {', '.join(map(self._described, names.values()))}"
            raise type(error)(f"program {self.name!r}: {error} (in {where})", **error.facts) from None
        result = next(iter(args.values()))
        for name, shape in shapes.items():
            result = Value(f"v{len(self._calls)}", shape, declared.args[name].dtype)
            names[name] = result.name
        self._calls.append(Call(op, names, attrs))
        return result

    def _described(self, name: str) -> str:
        """Return a value's name; for one that was computed also from which weights, which a reader knows by name."""
        for call in self._calls:
            if name in (call.args[output] for output in op_named(call.op).names("output")):
                weights = [value for value in call.args.values() if value in self._weights]
                return f"{name} = {call.op} of {', '.join(weights)}" if weights else name
        return name

    def program(self, name: str, output: Value) -> Program:
        """Return what was recorded, with *output* as the tensor that leaves. It passes ``verify``.

        Raises:
            OpError: a name was declared twice, or *output* is no float32 tensor of this program.
        """
        if output.dtype != "float32":
            raise OpError(f"program {self.name!r}: output {name} is {output.dtype}, expected float32")
        program = Program(
            self.name,
            tuple(self._inputs),
            (TensorSpec(output.name, output.dtype, output.shape),),
            tuple(self._weights.values()),
            tuple(self._states),
            tuple(self._calls),
            op_digests(call.op for call in self._calls),
        )
        verify(program)
        return program
