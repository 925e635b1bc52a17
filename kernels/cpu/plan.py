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

A value of the program is known by its name. What the plan adds is known by a tuple of all that it depends on, which no
name from the wire can equal: who asks for the same tuple means the same bytes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from typing import Any

from ollama_zmq.errors import UnsupportedOp
from ollama_zmq.kernels.cpu.program import ROW_KINDS, slots_nbytes
from ollama_zmq.kernels.cpu.simd import activation_nbytes
from ollama_zmq.kernels.cpu.weights import format_of
from ollama_zmq.ops.program import POSITIONS, ROWS, Call, Verified, angles_of
from ollama_zmq.ops.registry import OPS, op_named

ALIGNMENT = 64  # bytes; a cache line, and what panels need

Value = str | tuple[Any, ...]  # a value of the program or a cache by its name; what the plan adds by what it depends on


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
        weights: names of its weights in the declared order, "" where the call has none.
        attrs: attributes of the call; for "pack" its kind.
    """

    op: str
    reads: tuple[Value, ...]
    writes: Value
    weights: tuple[str, ...] = ()
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
        sizes: value -> bytes it may have there.
    """

    steps: list[PlannedStep]
    offsets: dict[Value, int]
    sizes: dict[Value, int]
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
        self.shapes = verified.shapes
        self.verified = verified
        self.weights = {weight.name: weight for weight in verified.program.weights}
        self.steps: list[PlannedStep] = []
        self.alike: dict[tuple[StepKind, str], list[int]] = {}  # the steps of a kind and symbol, rising
        self.ready: dict[Value, int] = {}  # value -> step that makes it, cache -> last step that touched it
        self.row_nbytes: dict[Value, tuple[str, int]] = {}  # value -> what its rows count, bytes of one
        self.fixed_nbytes: dict[Value, int] = {}  # value -> bytes besides those of its rows

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
            case "rope":
                self._rope(call)
            case "store_kv":
                op = PlannedOp("store_kv", (call.args["k"], call.args["v"]), call.args["cache"], attrs=call.attrs)
                self._row_op(op, "T", 0, after=self.ready.get(call.args["cache"], -1) + 1)
            case "expert_linear" | "linear_per_head":
                self._expert_linear(call)
            case name if op_named(name).by_row and name in ROW_KINDS:
                self._plain(call)
            case _:
                raise UnsupportedOp(f"op {call.op!r} has no kernel on the CPU", op=call.op)

    def _plain(self, call: Call) -> None:
        declared = op_named(call.op)
        reads: tuple[Value, ...] = tuple(
            call.args[name] for name in declared.names("input") if declared.args[name].dtype == "float32"
        )
        symbol, width = self.shapes[call.args["out"]]
        attrs = call.attrs
        if call.op == "embed":
            attrs = {"of_positions": int(call.args["token_ids"] == POSITIONS)}
        op = PlannedOp(call.op, reads, call.args["out"], _weights(call), attrs)
        self._row_op(op, str(symbol), 4 * int(width), joins=ROWS not in declared.args)

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
        """Return the first step of this kind from *after* on, a new one where there is none or it cannot be shared."""
        alike = self.alike.setdefault((kind, symbol), [])
        first = bisect_left(alike, after)
        if first < len(alike) and kind not in (StepKind.ATTENTION, StepKind.GATHER):
            return alike[first]
        self.steps.append(PlannedStep(kind, symbol))
        alike.append(len(self.steps) - 1)
        return alike[-1]

    def _linear(self, call: Call) -> None:
        x, weight, out = call.args["x"], call.args["weight"], call.args["out"]
        symbol, K = self.shapes[x]
        activation = format_of(self.weights[weight]).activation
        panels = ("pack", x, activation)
        if panels not in self.ready:
            op = PlannedOp("pack", (x,), panels, attrs={"activation": activation, "width": int(K)})
            self._row_op(op, str(symbol), activation_nbytes(activation, int(K)))
        step = self._step(StepKind.LINEAR, str(symbol), self.ready[panels] + 1)
        self.steps[step].ops.append(PlannedOp("linear", (panels,), out, (weight,)))
        self.ready[out] = step
        self.row_nbytes[out] = str(symbol), 4 * int(self.shapes[out][1])

    def _routed(self, call: Call) -> dict[str, Any]:
        """Return how many experts there are and a row uses; heads are experts all of which every row uses."""
        if "chosen" not in call.args:
            return dict.fromkeys(("n_experts", "n_used"), self.weights[call.args["weight"]].shape[0])
        return {"n_experts": int(self.shapes[call.args["chosen"]][1]), "n_used": int(call.attrs["n_used"])}

    def _slots(self, call: Call) -> Value:
        """Return the value that holds a routing's slots, sorted by expert."""
        symbol, attrs = str(self.shapes[call.args["x"]][0]), self._routed(call)
        chosen = tuple(call.args[name] for name in ("chosen",) if name in call.args)
        value = ("slots", symbol, *chosen, attrs["n_used"])
        if value not in self.ready:
            step = self._step(StepKind.GATHER, symbol, max((self.ready[name] + 1 for name in chosen), default=0))
            self.steps[step].ops.append(PlannedOp("gather", chosen, value, attrs=attrs))
            self.ready[value] = step
            self.fixed_nbytes[value] = slots_nbytes(0, **attrs)
            self.row_nbytes[value] = symbol, slots_nbytes(1, **attrs) - self.fixed_nbytes[value]
        return value

    def _expert_linear(self, call: Call) -> None:
        x, weight, out = call.args["x"], call.args["weight"], call.args["out"]
        slots, K, (symbol, W) = self._slots(call), self.weights[weight].shape[2], self.shapes[x]
        activation = format_of(self.weights[weight]).activation
        panels = ("pack_slots", x, slots, activation, K)  # a row of x is one input of K values or one for each slot
        if panels not in self.ready:
            attrs = self._routed(call) | {
                "activation": activation,
                "width": K,
                "shared": int(W) == K and "chosen" in call.args,
            }
            op = PlannedOp("pack_slots", (x, slots), panels, attrs=attrs)
            self._row_op(op, str(symbol), attrs["n_used"] * activation_nbytes(activation, K))
        step = self._step(StepKind.EXPERTS, str(symbol), self.ready[panels] + 1)
        self.steps[step].ops.append(PlannedOp("expert_linear", (panels, slots), out, (weight,), self._routed(call)))
        self.ready[out] = step
        self.row_nbytes[out] = str(symbol), 4 * int(self.shapes[out][1])

    def _rope(self, call: Call) -> None:
        angles = ("angles", *angles_of(call))
        if angles not in self.ready:
            op = PlannedOp("angles", (), angles, _weights(call), call.attrs)
            self._row_op(op, "T", 4 * int(call.attrs["rotary_dim"]))
        out = call.args["out"]
        op = PlannedOp("rope", (call.args["x"], angles), out, attrs=call.attrs)
        self._row_op(op, "T", 4 * int(self.shapes[out][1]))

    def _attention(self, call: Call) -> None:
        q, cache, out = call.args["q"], call.args["cache"], call.args["out"]
        step = self._step(StepKind.ATTENTION, "T", 0)
        self.steps[step].ops.append(PlannedOp("attention", (q, cache), out, (call.args.get("sinks", ""),), call.attrs))
        self.ready[out] = self.ready[cache] = step
        self.row_nbytes[out] = "T", 4 * int(self.shapes[out][1])

    def finish(self, most: dict[str, int]) -> Plan:
        lives = _lifetimes(self.steps, self.verified.output.name)
        sizes = {
            value: _aligned(nbytes * most[symbol] + self.fixed_nbytes.get(value, 0))
            for value, (symbol, nbytes) in self.row_nbytes.items()
        }
        offsets, nbytes = _place(lives, sizes, _overwrites(self.steps, lives, self.row_nbytes))
        return Plan(self.steps, offsets, sizes, nbytes)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _ops(steps: Sequence[PlannedStep]) -> Iterator[tuple[int, PlannedOp]]:
    for at, step in enumerate(steps):
        for op in step.ops:
            yield at, op


def _lifetimes(steps: Sequence[PlannedStep], output: str) -> dict[Value, tuple[int, int]]:
    """Return value -> (step that makes it, last step that reads it)."""
    lives: dict[Value, tuple[int, int]] = {}
    for at, op in _ops(steps):
        for value in (*op.reads, op.writes):
            lives[value] = (lives.get(value, (at, at))[0], at)
    if output in lives:
        lives[output] = (lives[output][0], len(steps))
    return lives


def _overwrites(
    steps: Sequence[PlannedStep], lives: dict[Value, tuple[int, int]], rows: dict[Value, tuple[str, int]]
) -> dict[Value, Value]:
    """Return value -> the value it may be written over: equal rows, and read by nobody after the op that makes it."""
    last_reader: dict[Value, PlannedOp] = {value: op for _, op in _ops(steps) for value in op.reads}
    over: dict[Value, Value] = {}
    for at, op in _ops(steps):
        for value in _written_over(op):
            if last_reader[value] is op and lives[value][1] == at and rows[value] == rows[op.writes]:
                over[op.writes] = value
                break
    return over


def _written_over(op: PlannedOp) -> list[Value]:
    """Return the values that an op reads and may write over; those that the plan adds may over none."""
    if op.op not in OPS:
        return []
    declared = OPS[op.op]
    return [value for name, value in zip(declared.names("input"), op.reads, strict=False) if name in declared.in_place]


def _weights(call: Call) -> tuple[str, ...]:
    return tuple(call.args.get(name, "") for name in op_named(call.op).names("weight"))


def _place(
    lives: dict[Value, tuple[int, int]], sizes: dict[Value, int], over: dict[Value, Value]
) -> tuple[dict[Value, int], int]:
    """Return value -> offset, and the bytes needed in all. First fit, in the order in which values come to life."""
    root: dict[Value, Value] = {}
    ends: dict[Value, int] = {}
    for value in sorted(sizes, key=lambda v: lives[v][0]):
        root[value] = root[over[value]] if value in over else value
        ends[root[value]] = max(ends.get(root[value], 0), lives[value][1])
    offsets: dict[Value, int] = {}
    active: list[tuple[int, int, int]] = []  # heap of the last step, offset, end of each that is placed
    gaps = _Gaps()
    for value in sorted(ends, key=lambda v: lives[v][0]):
        while active and active[0][0] < lives[value][0]:
            _, begin, end = heappop(active)
            gaps.give(begin, end)
        offsets[value] = gaps.take(sizes[value])
        heappush(active, (ends[value], offsets[value], offsets[value] + sizes[value]))
    return {value: offsets[root[value]] for value in sizes}, gaps.most


class _Gaps:
    """The places in scratch where nothing stands, which end with one that has no end.

    Attributes:
        most: the end of what was ever taken.
    """

    def __init__(self) -> None:
        self.most = 0
        self._gaps: list[tuple[int, int]] = []  # begin and end of those below ``_top``, rising, none beside another
        self._top = 0

    def take(self, nbytes: int) -> int:
        """Return where *nbytes* stand: in the first gap that holds them."""
        for i, (begin, end) in enumerate(self._gaps):
            if end - begin >= nbytes:
                self._gaps[i : i + 1] = [(begin + nbytes, end)] if end - begin > nbytes else []
                return begin
        begin, self._top = self._top, self._top + nbytes
        self.most = max(self.most, self._top)
        return begin

    def give(self, begin: int, end: int) -> None:
        """Note that nothing stands in *begin* .. *end* any more, and join it with the gaps beside it."""
        i = bisect_left(self._gaps, (begin, end))
        if i and self._gaps[i - 1][1] == begin:
            i -= 1
            begin = self._gaps.pop(i)[0]
        if i < len(self._gaps) and self._gaps[i][0] == end:
            end = self._gaps.pop(i)[1]
        if end == self._top:
            self._top = begin
        else:
            insort(self._gaps, (begin, end))
