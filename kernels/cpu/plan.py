"""A verified program as steps, and where every value stands in scratch memory. Plain Python, no addresses.

Calls are laid into the earliest step that may hold them:

    rows         a chain of ops that look at one row at a time (embed, norms, rope, quantizing ...): no barrier inside
    linear       every weight whose input is ready: q, k and v, gate and up
    attention    one
    gather       the slots of a routing sorted by expert, once per routing (experts.h)
    experts      like linear, over stacks of experts

Where a linear reads a value, the value is first packed into the panels its format wants (``activations.h``), once per
value and kind. The angles of RoPE are made once per step for all layers. An op on rows writes over its input where
nobody reads that any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ollama_zmq.errors import UnsupportedOp
from ollama_zmq.kernels.cpu.program import slots_nbytes
from ollama_zmq.kernels.cpu.simd import activation_nbytes
from ollama_zmq.kernels.cpu.weights import format_of
from ollama_zmq.ops.program import Call, Verified
from ollama_zmq.ops.registry import op_named

ALIGNMENT = 64  # bytes; a cache line, and what panels need


class StepKind(Enum):
    """How the work of a step is cut over threads."""

    ROWS = "rows"
    LINEAR = "linear"
    ATTENTION = "attention"
    GATHER = "gather"
    EXPERTS = "experts"


@dataclass(slots=True)
class PlannedOp:
    """One call, or a packing or table of angles that the plan added ("pack", "angles").

    Attributes:
        reads: values in scratch, in the order the kernel takes them.
        writes: the value it makes, or the cache it fills.
        weight: name of its weight, or "".
        attrs: attributes of the call; for "pack" its kind.
    """

    op: str
    reads: tuple[str, ...]
    writes: str
    weight: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class PlannedStep:
    """Ops between two barriers.

    Attributes:
        symbol: "T" or "R", what its rows count.
    """

    kind: StepKind
    symbol: str
    ops: list[PlannedOp] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``compile`` needs besides weights.

    Attributes:
        offsets: value -> byte offset in scratch; values that live at different times share places.
    """

    steps: list[PlannedStep]
    offsets: dict[str, int]
    scratch_nbytes: int


def plan(verified: Verified, max_tokens: int, max_rows: int | None = None) -> Plan:
    """Return the plan of a program for steps of up to *max_tokens* tokens, *max_rows* of them asked for.

    Raises:
        UnsupportedOp: a weight has a type without kernels.
    """
    planner = _Planner(verified)
    planner.copy_input()
    for call in verified.program.calls:
        planner.add(call)
    return planner.finish({"T": max_tokens, "R": max_tokens if max_rows is None else max_rows})


class _Planner:
    def __init__(self, verified: Verified) -> None:
        self.shapes = dict(verified.shapes)
        self.verified = verified
        self.weights = {weight.name: weight for weight in verified.program.weights}
        self.steps: list[PlannedStep] = []
        self.ready: dict[str, int] = {}  # value -> step that makes it, cache -> last step that touched it
        self.row_nbytes: dict[str, tuple[str, int]] = {}  # value -> what its rows count, bytes of one
        self.fixed_nbytes: dict[str, int] = {}  # value -> bytes besides those of its rows
        self.made: dict[tuple[Any, ...], str] = {}  # panels and angles by what they are of

    def copy_input(self) -> None:
        """Bring the input, which may lie at any address, into scratch. Token ids are read in place, by ``embed``."""
        spec = self.verified.input
        if spec.dtype == "float32":
            self._row_op(PlannedOp("copy", (), spec.name), "T", 4 * int(spec.shape[1]))

    def add(self, call: Call) -> None:
        match call.op:
            case "linear":
                self._linear(call)
            case "attention" | "attention_sinks":
                self._attention(call)
            case "rope" | "rope_factors":
                self._rope(call)
            case "store_kv":
                op = PlannedOp("store_kv", (call.args["k"], call.args["v"]), call.args["cache"], attrs=call.attrs)
                self._row_op(op, "T", 0, after=self.ready.get(call.args["cache"], -1) + 1)
            case "embed" | "take_rows" | "add" | "add_bias" | "rms_norm" | "layer_norm" | "silu_mul" | "route":
                self._plain(call)
            case "expert_linear":
                self._expert_linear(call)
            case "expert_sum":
                self._expert_sum(call)
            case _:
                raise UnsupportedOp(f"op {call.op!r} has no kernel on the CPU", op=call.op)

    def _plain(self, call: Call) -> None:
        declared = op_named(call.op)
        reads = tuple(call.args[n] for n in declared.names("input") if declared.args[n].dtype == "float32")
        weight = next((call.args[name] for name in declared.names("weight")), "")
        symbol, width = self.shapes[call.args["out"]]
        op = PlannedOp(call.op, reads, call.args["out"], weight, call.attrs)
        self._row_op(op, str(symbol), 4 * int(width), joins=call.op != "take_rows")

    def _row_op(self, op: PlannedOp, symbol: str, nbytes: int, *, after: int = 0, joins: bool = True) -> None:
        """Append *op* to the earliest chain over the rows *symbol* that comes after everything it reads.

        Args:
            joins: whether it may stand in the chain that makes what it reads.
        """
        for value in op.reads:
            at = self.ready[value]
            own = joins and self.steps[at].kind is StepKind.ROWS and self.steps[at].symbol == symbol
            after = max(after, at if own else at + 1)
        step = self._step(StepKind.ROWS, symbol, after)
        self.steps[step].ops.append(op)
        self.ready[op.writes] = step
        if nbytes:
            self.row_nbytes[op.writes] = symbol, nbytes

    def _step(self, kind: StepKind, symbol: str, after: int) -> int:
        if kind not in (StepKind.ATTENTION, StepKind.GATHER):
            for at in range(after, len(self.steps)):
                if self.steps[at].kind is kind and self.steps[at].symbol == symbol:
                    return at
        self.steps.append(PlannedStep(kind, symbol))
        return len(self.steps) - 1

    def _linear(self, call: Call) -> None:
        x, weight, out = call.args["x"], call.args["weight"], call.args["out"]
        symbol, K = self.shapes[x]
        activation = format_of(self.weights[weight]).activation
        key = ("pack", x, activation)
        if key not in self.made:
            self.made[key] = self._new_name(f"{x} packed {activation}")
            op = PlannedOp("pack", (x,), self.made[key], attrs={"activation": activation, "width": int(K)})
            self._row_op(op, str(symbol), activation_nbytes(activation, int(K)))
        panels = self.made[key]
        step = self._step(StepKind.LINEAR, str(symbol), self.ready[panels] + 1)
        self.steps[step].ops.append(PlannedOp("linear", (panels,), out, weight))
        self.ready[out] = step
        self.row_nbytes[out] = str(symbol), 4 * int(self.shapes[out][1])

    def _routed(self, call: Call) -> dict[str, Any]:
        return {"n_experts": int(self.shapes[call.args["routing"]][1]), "n_used": int(call.attrs["n_used"])}

    def _slots(self, call: Call) -> str:
        """Return the value that holds the routing's slots, sorted by expert."""
        routing, attrs = call.args["routing"], self._routed(call)
        key = ("slots", routing, attrs["n_used"])
        if key not in self.made:
            self.made[key] = value = self._new_name(f"{routing} slots {attrs['n_used']}")
            symbol = str(self.shapes[routing][0])
            step = self._step(StepKind.GATHER, symbol, self.ready[routing] + 1)
            self.steps[step].ops.append(PlannedOp("gather", (routing,), value, attrs=attrs))
            self.ready[value] = step
            self.fixed_nbytes[value] = slots_nbytes(0, **attrs)
            self.row_nbytes[value] = symbol, slots_nbytes(1, **attrs) - self.fixed_nbytes[value]
        return self.made[key]

    def _expert_sum(self, call: Call) -> None:
        reads = (call.args["x"], call.args["routing"], self._slots(call))
        symbol, width = self.shapes[call.args["out"]]
        self._row_op(PlannedOp(call.op, reads, call.args["out"], attrs=self._routed(call)), str(symbol), 4 * int(width))

    def _expert_linear(self, call: Call) -> None:
        x, weight, out = call.args["x"], call.args["weight"], call.args["out"]
        slots, K, (symbol, W) = self._slots(call), self.weights[weight].shape[2], self.shapes[x]
        activation = format_of(self.weights[weight]).activation
        key = ("pack", x, activation, slots)
        if key not in self.made:
            self.made[key] = self._new_name(f"{x} packed {activation} by {slots}")
            attrs = self._routed(call) | {"activation": activation, "width": K, "shared": int(W) == K}
            op = PlannedOp("pack_slots", (x, slots), self.made[key], attrs=attrs)
            self._row_op(op, str(symbol), attrs["n_used"] * activation_nbytes(activation, K))
        panels = self.made[key]
        step = self._step(StepKind.EXPERTS, str(symbol), self.ready[panels] + 1)
        self.steps[step].ops.append(PlannedOp("expert_linear", (panels, slots), out, weight, self._routed(call)))
        self.ready[out] = step
        self.row_nbytes[out] = str(symbol), 4 * int(self.shapes[out][1])

    def _rope(self, call: Call) -> None:
        factors = call.args.get("factors", "")
        key = ("angles", factors, *(call.attrs[name] for name in ("rotary_dim", "theta", "scale")))
        if key not in self.made:
            self.made[key] = self._new_name(f"angles {len(self.made)}")
            op = PlannedOp("angles", (), self.made[key], factors, call.attrs)
            self._row_op(op, "T", 4 * int(call.attrs["rotary_dim"]))
        out = call.args["out"]
        op = PlannedOp("rope", (call.args["x"], self.made[key]), out, attrs=call.attrs)
        self._row_op(op, "T", 4 * int(self.shapes[out][1]))

    def _new_name(self, name: str) -> str:
        """Return *name*, changed where the program has a value of that name."""
        while name in self.shapes:
            name += "'"
        return name

    def _attention(self, call: Call) -> None:
        q, cache, out = call.args["q"], call.args["cache"], call.args["out"]
        step = self._step(StepKind.ATTENTION, "T", 0)
        self.steps[step].ops.append(PlannedOp("attention", (q, cache), out, call.args.get("sinks", ""), call.attrs))
        self.ready[out] = self.ready[cache] = step
        self.row_nbytes[out] = "T", 4 * int(self.shapes[out][1])

    def finish(self, most: dict[str, int]) -> Plan:
        lives = _lifetimes(self.steps, self.verified.output.name)
        sizes = {
            value: _aligned(nbytes * most[symbol] + self.fixed_nbytes.get(value, 0))
            for value, (symbol, nbytes) in self.row_nbytes.items()
        }
        offsets, nbytes = _place(lives, sizes, _overwrites(self.steps, lives, sizes))
        return Plan(self.steps, offsets, nbytes)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _ops(steps: Sequence[PlannedStep]) -> Iterator[tuple[int, PlannedOp]]:
    for at, step in enumerate(steps):
        for op in step.ops:
            yield at, op


def _lifetimes(steps: Sequence[PlannedStep], output: str) -> dict[str, tuple[int, int]]:
    """Return value -> (step that makes it, last step that reads it)."""
    lives: dict[str, tuple[int, int]] = {}
    for at, op in _ops(steps):
        for value in (*op.reads, op.writes):
            lives[value] = (lives.get(value, (at, at))[0], at)
    if output in lives:
        lives[output] = (lives[output][0], len(steps))
    return lives


IN_PLACE = frozenset({"add", "add_bias", "rms_norm", "layer_norm", "silu_mul", "rope"})


def _overwrites(
    steps: Sequence[PlannedStep], lives: dict[str, tuple[int, int]], sizes: dict[str, int]
) -> dict[str, str]:
    """Return value -> the value it may be written over: same size, and read by nobody after the op that makes it."""
    last_reader: dict[str, PlannedOp] = {value: op for _, op in _ops(steps) for value in op.reads}
    over: dict[str, str] = {}
    for at, op in _ops(steps):
        if op.op not in IN_PLACE:
            continue
        for value in op.reads[: 1 if op.op == "rope" else 2]:
            if last_reader[value] is op and lives[value][1] == at and sizes[value] == sizes[op.writes]:
                over[op.writes] = value
                break
    return over


def _place(
    lives: dict[str, tuple[int, int]], sizes: dict[str, int], over: dict[str, str]
) -> tuple[dict[str, int], int]:
    """Return value -> offset, and the bytes needed in all. First fit, in the order in which values come to life."""
    root: dict[str, str] = {}
    ends: dict[str, int] = {}
    for value in sorted(sizes, key=lambda v: lives[v][0]):
        root[value] = root.get(over.get(value, ""), "") or value
        ends[root[value]] = max(ends.get(root[value], 0), lives[value][1])
    offsets: dict[str, int] = {}
    active: list[tuple[int, int, int]] = []  # offset, end of it, last step
    total = 0
    for value in sorted(ends, key=lambda v: lives[v][0]):
        active = [block for block in active if block[2] >= lives[value][0]]
        offset = 0
        for begin, end, _ in sorted(active):
            if offset + sizes[value] <= begin:
                break
            offset = max(offset, end)
        offsets[value] = offset
        active.append((offset, offset + sizes[value], ends[value]))
        total = max(total, offset + sizes[value])
    return {value: offsets[root[value]] for value in sizes}, total
