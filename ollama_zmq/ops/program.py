"""A program: the tensor ops of one stage, recorded once, verified once, run at every step.

    Program   name, inputs, outputs, weights, states, calls, digests of the ops
    Call      op name, {argument: value name}, {attribute: number or word}

A program carries no data and no addresses. Its MessagePack bytes are hashed and the hash is its id, so both sides
mean the same thing by it. ``verify`` is the only gate: after it every value has a known shape, every attribute is in
range, every weight and state is declared, every value is written before it is read and written once, and no name is
more than an identifier (``NAME``). How large a program may be is bounded, so that planning one takes no time.

Two sizes stay open until a step runs: ``T``, the tokens of the pass, and ``R``, the rows somebody wants. Two values are
given by the step and never declared: ``positions`` int32 [T] and ``rows`` int32 [R]. The first axis of every tensor
that is computed is one of the two and no other axis is, so the memory of a value is its row's times T or R; and only
what a device has checked is ever used as an index: ``rows`` by ``take_rows``, the program's input by ``embed``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import msgspec

from ollama_zmq import packing
from ollama_zmq.errors import OpError, ShapeError, UnsupportedOp
from ollama_zmq.ops.registry import op_digests, op_named
from ollama_zmq.ops.spec import OPEN_SYMBOLS, Kind, Op, Shape, shown
from ollama_zmq.ops.state import KV_TYPES, MAX_GROUPS, NO_WINDOW, PagedKvSpec, StateSpec

POSITIONS = "positions"
ROWS = "rows"
STEP_VALUES = (POSITIONS, ROWS)

MAX_NBYTES = 1 << 20  # of a program's bytes; 126 layers of llama are 2,017 calls, 1,134 weights, 171 KB
MAX_CALLS = 8_000
MAX_VALUES = 20_000
MAX_ANGLES = 8  # tables of angles that its ropes ask for, which take a device milliseconds each
MAX_SIZE = 1 << 31
MAX_NUMBERS = 1 << 40  # of a weight, or of a row of a value: no sum of bytes comes near 2^63
MAX_RANK = 3  # of a weight
MAX_HEAD = 1024  # sizes of a cache: heads, numbers of a key, numbers of a value
NAME = re.compile(r"[A-Za-z0-9_.#-]{1,128}")
MAX_PROGRAM_NAME = 256  # that one is for people, and identifies nothing
ARG_KINDS: tuple[Kind, ...] = ("input", "weight", "state", "output")
INPUT_RANKS = {"int32": 1, "float32": 2}


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """A tensor that enters or leaves a program. ``shape`` may hold "T" or "R"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class WeightSpec(msgspec.Struct, frozen=True, array_like=True):
    """A weight as the file has it: ggml type id and row-major shape, (N, K) for a matrix."""

    name: str
    type: int
    shape: tuple[int, ...]


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One op applied: argument name -> value name, attribute name -> value."""

    op: str
    args: dict[str, str]
    attrs: dict[str, int | float | str]


class Program(msgspec.Struct, frozen=True, array_like=True):
    """A list of calls with what they read and write declared.

    Attributes:
        ops: name -> digest of the declaration of every op that is called (``registry.op_digests``).
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[WeightSpec, ...]
    states: tuple[StateSpec, ...]
    calls: tuple[Call, ...]
    ops: dict[str, str] = {}

    def to_bytes(self) -> bytes:
        """Return the bytes whose digest is the program's id."""
        return packing.pack(self)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Program:
        """Return the program in *data*, not yet verified.

        Raises:
            OpError: not a program, or too large.
        """
        if len(data) > MAX_NBYTES:
            raise OpError(f"a program of {len(data)} bytes, at most {MAX_NBYTES}")
        try:
            plain = packing.unpack_plain(data)
            _check_counts(plain)
            program: Program = packing.as_record(plain, cls)
        except ValueError as error:
            raise OpError(f"not a program: {error}") from None
        return program

    @property
    def id(self) -> bytes:
        """16 bytes that name this program."""
        return program_id(self.to_bytes())


def _check_counts(plain: Any) -> None:
    """Refuse what is plainly too much before records are made of it, which takes longer than to read it."""
    counts = [len(part) for part in plain if isinstance(part, list)] if isinstance(plain, list) else []
    if max(counts, default=0) > MAX_VALUES:
        raise OpError(f"not a program: {max(counts)} entries in a list, at most {MAX_VALUES}")


def program_id(data: bytes | memoryview) -> bytes:
    """Return the id of the program whose bytes are *data*."""
    return hashlib.sha256(data).digest()[:16]


@dataclass(frozen=True, slots=True)
class Verified:
    """A program that passed :func:`verify`.

    Attributes:
        shapes: value name -> shape, of every input, step value and call output; weights and states too.
    """

    program: Program
    shapes: Mapping[str, Shape]

    @property
    def input(self) -> TensorSpec:
        """The one tensor that enters."""
        return self.program.inputs[0]

    @property
    def output(self) -> TensorSpec:
        """The one tensor that leaves."""
        return self.program.outputs[0]


def n_rows_looked_up(verified: Verified, token_ids: str) -> int | None:
    """Return how many rows the smallest matrix has that ``embed`` looks *token_ids* up in; None without any."""
    calls = (call.args for call in verified.program.calls if call.op == "embed")
    return min(
        (int(verified.shapes[args["weight"]][0]) for args in calls if args["token_ids"] == token_ids), default=None
    )


def verify(program: Program) -> Verified:
    """Check *program* completely and infer the shape of every value.

    Raises:
        OpError: too large, a name that is no identifier, used twice or never written, an unknown op or attribute.
        ShapeError: some call does not fit, or an output is not what is declared.
    """
    _check_size(program)
    shapes: dict[str, Shape] = {POSITIONS: ("T",), ROWS: ("R",)}
    dtypes: dict[str, str] = {POSITIONS: "int32", ROWS: "int32"}
    _declare_input(program.inputs[0], shapes, dtypes)
    for weight in program.weights:
        if not 1 <= len(weight.shape) <= MAX_RANK:
            raise ShapeError(f"weight {shown(weight.name)}: {len(weight.shape)} axes, expected 1 to {MAX_RANK}")
        _declare(weight.name, weight.shape, "any", shapes, dtypes)
    _declare_states(program, shapes, dtypes)
    _check_ops(program)
    for call in program.calls:
        _infer(call, shapes, dtypes)
    _check_windows(program)
    _check_angles(program)
    _check_output(program.outputs[0], shapes, dtypes)
    return Verified(program, shapes)


def _check_size(program: Program) -> None:
    name = program.name
    if len(name) > MAX_PROGRAM_NAME or not name.isprintable():
        raise OpError(f"program {shown(name)}: expected a name of printable characters, at most {MAX_PROGRAM_NAME}")
    if len(program.inputs) != 1 or len(program.outputs) != 1:
        found = f"{len(program.inputs)} inputs and {len(program.outputs)} outputs"
        raise OpError(f"program {name!r}: {found}, expected one of each")
    if len(program.calls) > MAX_CALLS:
        raise OpError(f"program {name!r}: {len(program.calls)} calls, at most {MAX_CALLS}")


def _check_ops(program: Program) -> None:
    """Refuse an op that whoever made the program declares otherwise, by its name."""
    for name, digest in op_digests(call.op for call in program.calls).items():
        if program.ops.get(name) != digest:
            raise UnsupportedOp(
                f"op {name!r} is declared otherwise than by the peer: install the same version of ollama-zmq on both",
                op=name,
            )


def _check_angles(program: Program) -> None:
    angles = {angles_of(call) for call in program.calls if call.op == "rope"}
    if len(angles) > MAX_ANGLES:
        raise OpError(f"program {program.name!r}: ropes by {len(angles)} tables of angles, at most {MAX_ANGLES}")


ANGLE_ATTRS = ("rotary_dim", "theta", "scale", "ramp_start", "ramp_end", "magnitude")


def angles_of(rope: Call) -> tuple[Any, ...]:
    """Return what the angles of a call of ``rope`` depend on besides positions."""
    return rope.args.get("factors"), *(rope.attrs[name] for name in ANGLE_ATTRS)


def _declare_input(tensor: TensorSpec, shapes: dict[str, Shape], dtypes: dict[str, str]) -> None:
    rows, columns = tensor.shape[:1], tensor.shape[1:]
    right = len(tensor.shape) == INPUT_RANKS.get(tensor.dtype) and all(isinstance(size, int) for size in columns)
    if rows != ("T",) or not right:
        found = f"{shown(tensor.dtype)} {shown(list(tensor.shape))}"
        raise ShapeError(f"input {shown(tensor.name)}: {found}, expected int32 [T] or float32 [T, D]")
    _declare(tensor.name, tensor.shape, tensor.dtype, shapes, dtypes)


def _declare_states(program: Program, shapes: dict[str, Shape], dtypes: dict[str, str]) -> None:
    windows: dict[int, int] = {}  # group -> window
    for state in program.states:
        _declare(state.name, state.shape, "kv" if isinstance(state, PagedKvSpec) else "slot", shapes, dtypes)
        if isinstance(state, PagedKvSpec):
            _check_paged(state)
            if windows.setdefault(state.group, state.window) != state.window:
                raise OpError(
                    f"state {state.name!r}: window {state.window}, but group {state.group} has {windows[state.group]}"
                )
        elif not 1 <= len(state.shape) <= MAX_RANK:
            raise ShapeError(f"state {state.name!r}: {len(state.shape)} axes, expected 1 to {MAX_RANK}")


def _check_paged(state: PagedKvSpec) -> None:
    if max(state.shape) > MAX_HEAD:
        raise ShapeError(f"state {state.name!r}: sizes {list(state.shape)}, expected 1..{MAX_HEAD}", arg=state.name)
    if state.type not in KV_TYPES:
        known = ", ".join(KV_TYPES)
        raise OpError(f"state {state.name!r}: type {shown(state.type)}, expected one of {known}")
    if not 0 <= state.group < MAX_GROUPS:
        raise OpError(f"state {state.name!r}: group {state.group}, expected 0..{MAX_GROUPS - 1}")
    if not 1 <= state.window <= NO_WINDOW:
        raise OpError(f"state {state.name!r}: window {state.window}, expected 1..{NO_WINDOW}")


def _check_windows(program: Program) -> None:
    """Refuse a call that reads further back than its state is kept."""
    kept = {state.name: state.window for state in program.states if isinstance(state, PagedKvSpec)}
    for call in program.calls:
        window, read = kept.get(call.args.get("cache", ""), NO_WINDOW), int(call.attrs.get("window", 1))
        if read > window:
            raise OpError(f"{call.op}: window {read}, but its state has one of {window}", op=call.op)


def _check_output(tensor: TensorSpec, shapes: dict[str, Shape], dtypes: dict[str, str]) -> None:
    shape, dtype = shapes.get(tensor.name), dtypes.get(tensor.name)
    if (shape, dtype) != (tensor.shape, tensor.dtype) or dtype != "float32":
        declared = f"{shown(tensor.dtype)} {shown(tensor.shape)}"
        raise ShapeError(f"output {shown(tensor.name)}: {dtype} {shape}, declared {declared}, expected float32")


def _declare(name: str, shape: Shape, dtype: str, shapes: dict[str, Shape], dtypes: dict[str, str]) -> None:
    if not NAME.fullmatch(name):
        raise OpError(f"value {shown(name)}: expected 1 to 128 of A-Z a-z 0-9 _ . # - as a name")
    if name in shapes:
        raise OpError(f"value {name!r}: declared twice", value=name)
    if len(shapes) >= MAX_VALUES:
        raise OpError(f"more than {MAX_VALUES} values")
    for size in shape:
        if size not in OPEN_SYMBOLS if isinstance(size, str) else not 1 <= size < MAX_SIZE:
            raise ShapeError(f"{name}: size {shown(size)} is not T, R or 1..{MAX_SIZE - 1}", arg=name)
    if prod(size for size in shape if isinstance(size, int)) > MAX_NUMBERS:
        raise ShapeError(f"{name}: {list(shape)} are more than {MAX_NUMBERS} numbers", arg=name)
    shapes[name] = shape
    dtypes[name] = dtype


def _infer(call: Call, shapes: dict[str, Shape], dtypes: dict[str, str]) -> None:
    op = op_named(call.op)
    op.check_names(call.args, *ARG_KINDS)
    read = {name: call.args[name] for name in op.names("input", "weight", "state") if name in call.args}
    for name, value in read.items():
        if value not in shapes:
            raise OpError(f"{op.name}.{name}: value {shown(value)} is not written before it is read", op=op.name)
        if dtypes[value] != op.args[name].dtype:
            raise ShapeError(f"{op.name}.{name}: dtype {dtypes[value]}, expected {op.args[name].dtype}", op=op.name)
    _check_rows(op, read, shapes)
    inferred = op.infer({name: shapes[value] for name, value in read.items()}, call.attrs)
    for name, shape in inferred.items():
        _declare(call.args[name], shape, op.args[name].dtype, shapes, dtypes)


def _check_rows(op: Op, read: Mapping[str, str], shapes: Mapping[str, Shape]) -> None:
    """Refuse what would index by unchecked numbers, or find other rows than the step's T tokens."""
    for name, value in read.items():
        lookup = op.name == "embed" and value == POSITIONS  # devices check them as they check token ids
        if name != value and (name in STEP_VALUES or value in STEP_VALUES) and not lookup:
            raise OpError(f"{op.name}.{name}: {shown(value)} cannot stand here: a step gives its own", op=op.name)
        by_token = (op.uses_pages or ROWS in op.args) and op.args[name].dims.startswith("T")
        if by_token and shapes[value][:1] != ("T",):
            raise ShapeError(
                f"{op.name}.{name}: shape {list(shapes[value])}, expected [{op.args[name].dims}]", op=op.name
            )


def row_floats(verified: Verified) -> int:
    """Return how many float32 values one token needs if every value were kept: an upper bound for scratch memory."""
    total = 0
    for call in verified.program.calls:
        for name in op_named(call.op).names("output"):
            product = 1
            for size in verified.shapes[call.args[name]]:
                product *= size if isinstance(size, int) else 1
            total += product
    return total


def streamed_shares(program: Program) -> dict[str, float]:
    """Return which share of each matrix one token multiplies with: of a stack of experts, those it uses."""
    stacks = {call.args["weight"]: call.attrs["n_used"] for call in program.calls if call.op == "expert_linear"}
    stacks |= {call.args["bias"]: call.attrs["n_used"] for call in program.calls if call.op == "expert_bias"}
    return {
        spec.name: float(stacks.get(spec.name, 1)) / (spec.shape[0] if spec.name in stacks else 1)
        for spec in program.weights
        if len(spec.shape) > 1
    }


def check_inputs(verified: Verified, array: Any, T: int) -> None:
    """Check the one input of a step against the declaration, with ``T`` now known.

    Raises:
        ShapeError: wrong dtype, shape or layout.
    """
    spec = verified.input
    expected = tuple(T if size == "T" else size for size in spec.shape)
    if array.dtype != spec.dtype or tuple(array.shape) != expected:
        raise ShapeError(f"{spec.name}: {array.dtype} {array.shape}, expected {spec.dtype} {expected}", arg=spec.name)
    if not array.flags.c_contiguous:
        raise ShapeError(f"{spec.name}: not C-contiguous", arg=spec.name)
