"""How an op is declared: its arguments' shapes in symbols, its attributes' ranges, its tolerance.

One capital per axis, the same everywhere: ``T`` tokens in this pass, ``R`` rows asked for, ``D`` hidden, ``N`` and
``K`` rows and columns of a weight, ``H``/``G`` query and key-value heads, ``E``/``F`` sizes of a key and a value,
``V`` vocabulary. A
symbol is bound by the first argument or attribute that carries it; ``H*E`` is the product of two that are known. So
one check serves every op: when a Builder records a call, when a worker verifies a program that came over the wire, and
when a kernel is called directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ollama_zmq.errors import OpError, ShapeError

Size = int | str  # a number, or a symbol that stays open until a step runs: "T" or "R"
Shape = tuple[Size, ...]
Kind = Literal["input", "weight", "state", "output"]

OPEN_SYMBOLS = frozenset({"T", "R"})
MAX_SHOWN = 160


def shown(value: Any) -> str:
    """Return what stands in an error for a value that came from a peer: its ``repr``, cut where it is long."""
    text = repr(value[: MAX_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


@dataclass(frozen=True, slots=True)
class Arg:
    """One tensor argument.

    Attributes:
        dims: its axes, ``"T H*E"``.
        dtype: "float32" or "int32"; a weight may be of any tensor type (``"any"``); a state is "kv" or "slot".
        kind: read from a step, a weight, a state of the sequences, or written.
        optional: whether a call may leave it out.
    """

    dims: str
    dtype: str = "float32"
    kind: Kind = "input"
    optional: bool = False

    def bind(self, name: str, shape: Shape, sizes: dict[str, Size]) -> None:
        """Check *shape* against this declaration, adding what it binds to *sizes*.

        Raises:
            ShapeError: wrong rank, or a symbol bound to two sizes.
        """
        axes = self.dims.split()
        if len(shape) != len(axes):
            raise ShapeError(f"{name}: shape {list(shape)}, expected [{self.dims}]", arg=name)
        for axis, size in zip(axes, shape, strict=True):
            known = size_of(axis, sizes) if "*" in axis else sizes.setdefault(axis, size)
            if known != size:
                raise ShapeError(f"{name}: {axis}={size}, but {axis}={known} elsewhere", arg=name)

    def shape(self, sizes: Mapping[str, Size]) -> Shape:
        """Return the shape this argument has once *sizes* are known."""
        return tuple(size_of(axis, sizes) for axis in self.dims.split())


def Input(dims: str, dtype: str = "float32") -> Arg:  # noqa: N802 - reads as a declaration
    """A tensor an op reads."""
    return Arg(dims, dtype, "input")


def Weight(dims: str, *, optional: bool = False) -> Arg:  # noqa: N802 - reads as a declaration
    """A tensor of the model, in whatever type the file has it."""
    return Arg(dims, "any", "weight", optional)


def Cache() -> Arg:  # noqa: N802 - reads as a declaration
    """The paged keys and values of one layer."""
    return Arg("G E F", "kv", "state")


def Slot(dims: str) -> Arg:  # noqa: N802 - reads as a declaration
    """What an op keeps of each sequence besides keys and values: read from one slot, written to another."""
    return Arg(dims, "slot", "state")


def Output(dims: str, dtype: str = "float32") -> Arg:  # noqa: N802 - reads as a declaration
    """A tensor an op writes."""
    return Arg(dims, dtype, "output")


def size_of(axis: str, sizes: Mapping[str, Size]) -> Size:
    """Return the size of *axis* (``"D"`` or ``"H*E"``) under *sizes*.

    Raises:
        ShapeError: a symbol in it is not bound.
    """
    product: Size = 1
    for symbol in axis.split("*"):
        if symbol not in sizes:
            raise ShapeError(f"{symbol} is not bound by any argument", symbol=symbol)
        size = sizes[symbol]
        if isinstance(size, str) or isinstance(product, str):
            if "*" in axis:
                raise ShapeError(f"{axis}: a product of an open size", symbol=symbol)
            return size
        product *= size
    return product


@dataclass(frozen=True, slots=True)
class Attr:
    """One number or word that an op takes besides tensors.

    Attributes:
        low, high: the inclusive range of a number.
        choices: the words allowed, for a word.
        symbol: the axis symbol that this number binds, if any.
    """

    type: type[int] | type[float] | type[str]
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()
    symbol: str = ""

    def number(self, value: Any) -> float:
        """Return *value* as a number: of a word, which of the choices it is."""
        return self.choices.index(value) if self.type is str else value

    def check(self, name: str, value: Any) -> None:
        """Raise :class:`OpError` unless *value* is of the right type and in range."""
        if self.type is str:
            if value not in self.choices:
                raise OpError(f"{name}={shown(value)}, expected one of {', '.join(self.choices)}", attr=name)
            return
        allowed = (int, float) if self.type is float else (int,)
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise OpError(f"{name}={shown(value)}, expected {self.type.__name__}", attr=name)
        if not self.low <= value <= self.high:
            raise OpError(f"{name}={value} is outside {self.low:g}..{self.high:g}", attr=name)


@dataclass(frozen=True, slots=True)
class Op:
    """The promise of one tensor op. Kernels keep it within ``rtol`` and ``atol`` of the float64 reference.

    Attributes:
        args: name -> argument, inputs first, outputs last, in the order kernels take them.
        attrs: name -> attribute; all are required.
        uses_pages: whether the op reads the step's page tables besides its arguments.
        by_row: whether a row of what is written needs one row of what is read, so that ops may be chained row by row.
        in_place: the inputs over which the output may be written, where nobody else reads them.
        rule: what else must hold between attributes and sizes; returns a complaint or "".
    """

    name: str
    args: Mapping[str, Arg]
    rtol: float
    atol: float
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    uses_pages: bool = False
    by_row: bool = False
    in_place: tuple[str, ...] = ()
    rule: Callable[[Mapping[str, Any], Mapping[str, Size]], str] | None = None

    def names(self, *kinds: Kind) -> list[str]:
        """Return the names of the arguments of these *kinds*, in order."""
        return [name for name, arg in self.args.items() if arg.kind in kinds]

    def check_names(self, given: Iterable[str], *kinds: Kind) -> None:
        """Raise :class:`ShapeError` unless *given* are the arguments of these *kinds*, optional ones or not."""
        wanted, found = set(self.names(*kinds)), set(given)
        if not wanted - found <= {name for name in wanted if self.args[name].optional} or found - wanted:
            expected = [f"{name} (optional)" if self.args[name].optional else name for name in sorted(wanted)]
            raise ShapeError(f"{self.name}: arguments {shown(sorted(found))}, expected {expected}", op=self.name)

    def infer(self, shapes: Mapping[str, Shape], attrs: Mapping[str, Any]) -> dict[str, Shape]:
        """Check a call and return the shapes of its outputs.

        Args:
            shapes: argument name -> shape, for every argument that is not an output; a KV cache's is (G, E, F).

        Raises:
            ShapeError: an argument is missing, surplus, or does not fit.
            OpError: an attribute is missing, surplus, or out of range.
        """
        sizes = self._sizes_from(attrs)
        self.check_names(shapes, "input", "weight", "state")
        for name in (name for name in self.args if name in shapes):
            self.args[name].bind(f"{self.name}.{name}", shapes[name], sizes)
        if self.rule and (complaint := self.rule(attrs, sizes)):
            raise OpError(f"{self.name}: {complaint}", op=self.name)
        return {name: self.args[name].shape(sizes) for name in self.names("output")}

    def _sizes_from(self, attrs: Mapping[str, Any]) -> dict[str, Size]:
        if set(attrs) != set(self.attrs):
            raise OpError(
                f"{self.name}: attributes {shown(sorted(attrs))}, expected {sorted(self.attrs)}", op=self.name
            )
        sizes: dict[str, Size] = {}
        for name, attr in self.attrs.items():
            attr.check(f"{self.name}.{name}", attrs[name])
            if attr.symbol:
                sizes[attr.symbol] = attrs[name]
        return sizes
