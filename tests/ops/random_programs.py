"""Random valid programs, random steps for them, and whether a device does with them what each op promises.

A program is drawn op by op: any value whose shape fits may be read again, twice by one call, or by nobody; weights are
shared by ops and by names; caches are filled again after they were read. It is run once for each of its values as the
output, which is another plan each time. Each value is then compared with what the reference device's op makes of the
values that the device itself read, so that errors do not add up and an op's own tolerance holds for it.

As a script it goes on for some time, with hostile programs between, and says what it met:

    python -m tests.ops.random_programs --seconds 600 --seed 1
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from ollama_zmq.devices.base import Array, Budget, Device, Step
from ollama_zmq.devices.reference_ops import FUNCTIONS, KvCache
from ollama_zmq.devices.reference_ops import SCORES as SCORES_OF
from ollama_zmq.errors import OllamaZmqError, ShapeError
from ollama_zmq.formats.dequantize import dequantize
from ollama_zmq.formats.quants import QuantType, type_of_id
from ollama_zmq.kernels.cpu import isa_names
from ollama_zmq.kernels.cpu.device import CpuDevice
from ollama_zmq.ops.attention import Q8_0_RTOL
from ollama_zmq.ops.choose_experts import SCORES
from ollama_zmq.ops.program import POSITIONS, ROWS, Call, Program, TensorSpec, Verified, WeightSpec, angles_of, verify
from ollama_zmq.ops.registry import OPS, op_digests
from ollama_zmq.ops.spec import Attr, Op
from ollama_zmq.ops.state import PAGE_SLOTS, PagedKvSpec
from tests.models_tiny import draw_linear
from tests.ops.one_op import FLOAT_KINDS, OPTIONAL_KINDS, REQUIRED_KINDS
from tests.ops.test_linear import FLOAT_RTOL
from tests.reference.linear import linear_scale

KINDS = (*REQUIRED_KINDS, *OPTIONAL_KINDS)
WIDTHS = (1, 6, 16, 33, 64, 96, 256, 512)
MAX_WIDTH = 1024
MOST_NUMBERS = 1 << 18  # of a mutant's weight that is made
LARGEST = 1e4  # values beyond it are near the end of float16; no op's promise is asked for there
MAX_TOKENS = 40
KV_PAGES = 14
BUDGET = 64 << 20
Rng = np.random.Generator


@lru_cache(maxsize=4096)
def weight_bytes(kind: str, shape: tuple[int, ...]) -> bytes:
    """The bytes of a random weight, always the same ones of this type and shape."""
    rng = np.random.default_rng([KINDS.index(kind), *shape])
    if len(shape) == 1:
        values = rng.normal(1, 0.2, size=shape).astype(np.float32)
        return draw_of(values, kind)
    count = int(np.prod(shape[:-2], dtype=int))
    return b"".join(draw_linear(rng, kind, *shape[-2:]).tobytes() for _ in range(count))


def draw_of(values: Array, kind: str) -> bytes:
    """A vector as *kind*, one of ``FLOAT_KINDS``."""
    if kind == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype(np.float16 if kind == "F16" else np.float32).tobytes()


@lru_cache(maxsize=4096)
def weight_values(kind: str, shape: tuple[int, ...]) -> Array:
    """The same weight as float32."""
    return dequantize(QuantType[kind], weight_bytes(kind, shape), shape)


class Drawer:
    """Draws one valid program."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.values: list[tuple[str, str, int]] = []  # name, "T" or "R", width
        self.weights: list[WeightSpec] = []
        self.caches: list[PagedKvSpec] = []
        self.calls: list[Call] = []

    def program(self, n_calls: int) -> Program:
        rng = self.rng
        if rng.random() < 0.3:
            tensor = TensorSpec("token_ids", "int32", ("T",))
            table = self.weight((int(rng.integers(1, 40)), self.width()))
            self.call("embed", {"token_ids": "token_ids", "weight": table.name}, {}, "T", table.shape[1])
        else:
            tensor = TensorSpec("x", "float32", ("T", self.width()))
            self.values.append(("x", "T", int(tensor.shape[1])))
        while len(self.calls) < n_calls:
            getattr(self, f"draw_{self.pick(DRAWN)}")()
        name, symbol, width = self.values[-1]
        output = TensorSpec(name, "float32", (symbol, width))
        digests = op_digests(call.op for call in self.calls)
        states = tuple(self.caches)
        return Program("random", (tensor,), (output,), tuple(self.weights), states, tuple(self.calls), digests)

    def pick(self, items: Any) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def width(self) -> int:
        return int(self.pick(WIDTHS))

    def value(self, symbol: str | None = None) -> tuple[str, str, int]:
        """A value; most often one of the last."""
        found = [value for value in self.values if symbol in (None, value[1])]
        return self.pick(found[-3:] if self.rng.random() < 0.6 else found)

    def weight(self, shape: tuple[int, ...], kinds: tuple[str, ...] = KINDS) -> WeightSpec:
        """A weight of this shape, often one that is declared already."""
        fits = [kind for kind in kinds if shape[-1] % QuantType[kind].block_size == 0]
        allowed = {QuantType[kind].id for kind in fits}
        known = [spec for spec in self.weights if spec.shape == shape and spec.type in allowed]
        if known and self.rng.random() < 0.5:
            return self.pick(known)
        spec = WeightSpec(f"w{len(self.weights)}", QuantType[self.pick(fits)].id, shape)
        self.weights.append(spec)
        return spec

    def call(self, op: str, args: dict[str, str], attrs: dict[str, Any], symbol: str, width: int) -> None:
        if width > MAX_WIDTH:
            return
        out = f"v{len(self.calls)}"
        self.calls.append(Call(op, args | {"out": out}, attrs))
        self.values.append((out, symbol, width))

    def draw_linear(self) -> None:
        x, symbol, K = self.value()
        N = self.width()
        self.call("linear", {"x": x, "weight": self.weight((N, K)).name}, {}, symbol, N)

    def draw_plain(self) -> None:
        """An op that has a row of numbers for a row of the same width; what it takes follows from its declaration."""
        op = OPS[self.pick(PLAIN)]
        positions = op.names("input")[-1] == POSITIONS
        x, symbol, width = self.value("T" if positions else None)
        head_dim = self.pick([size for size in range(1, width + 1) if width % size == 0])
        narrower = op.names("input")[0] if any("*" in arg.dims for arg in op.args.values()) else ""
        if narrower:
            head_dim = width // self.pick([w for _, s, w in self.values if s == symbol and width % w == 0])
        args = {}
        for name in op.names("input"):
            wanted = width // head_dim if name == narrower else width
            fits = [value for value, *shape in self.values if shape == [symbol, wanted]]
            args[name] = POSITIONS if name == POSITIONS else x if x in fits and not args else self.pick(fits)
        for name in op.names("weight"):
            if op.args[name].optional and self.rng.random() < 0.3:
                continue
            short = {"P": head_dim if "head_dim" in op.attrs else 1, "Q": head_dim}.get(op.args[name].dims, width)
            args[name] = self.weight((self.pick((short, width)),), FLOAT_KINDS).name
        attrs = {name: self.pick(attr.choices or numbers_of(name, attr, head_dim)) for name, attr in op.attrs.items()}
        self.call(op.name, args, attrs, symbol, width)

    def draw_rope(self) -> None:
        x, symbol, width = self.value("T")
        head_dim = self.pick([size for size in range(2, width + 1) if width % size == 0 and size <= 128] or [0])
        if not head_dim:
            return
        rotary_dim = 2 * int(self.rng.integers(1, head_dim // 2 + 1))
        attrs = {"n_heads": width // head_dim, "head_dim": head_dim, "rotary_dim": rotary_dim}
        attrs |= {
            "theta": self.pick((10000.0, 500000.0)),
            "scale": self.pick((1.0, 1.0, 0.5)),
            "ramp_start": self.pick((-1.0, -1.0, 1.0)),
            "ramp_end": self.pick((-1.0, -1.0, 4.0)),
            "magnitude": self.pick((1.0, 1.0, 1.2)),
            "pairing": self.pick(("halves", "interleaved")),
        }
        args = {"x": x, "positions": POSITIONS}
        if len({angles_of(call) for call in self.calls if call.op == "rope"}) > 6:
            return
        if self.rng.random() < 0.3:
            args["factors"] = self.weight((rotary_dim // 2,), FLOAT_KINDS).name
        self.call("rope", args, attrs, symbol, width)

    def draw_route(self) -> None:
        logits, symbol, X = self.value()
        attrs = {"n_used": int(self.rng.integers(1, min(X, 6) + 1)), "scores": self.pick(SCORES)}
        groups = {"n_groups": 1, "n_groups_used": 1}
        if X % 8 == 0 and self.rng.random() < 0.4:
            groups = {"n_groups": X // 4, "n_groups_used": min(2, X // 4)}
        args = {"logits": logits}
        if self.rng.random() < 0.4:
            args["bias"] = self.weight((X,), FLOAT_KINDS).name
        self.call("choose_experts", args, attrs | groups, symbol, X)
        self.draw_shares()

    def draw_shares(self) -> None:
        """Whom a row is routed to may be any row of few numbers; so may its logits."""
        chosen, symbol, X = self.value()
        logits = self.pick([name for name, *shape in self.values if shape == [symbol, X]])
        args = {"logits": logits, "chosen": chosen}
        if self.rng.random() < 0.3:
            args["weight"] = self.weight((X,), FLOAT_KINDS).name
        attrs = {"n_used": int(self.rng.integers(1, min(X, 6) + 1)), "scores": self.pick(SCORES)}
        attrs |= {"normalize": int(self.rng.integers(2)), "scale": self.pick((1.0, 2.5))}
        self.call("expert_shares", args, attrs, symbol, attrs["n_used"])

    def draw_expert_bias(self) -> None:
        x, symbol, W = self.value()
        chosen, _, X = self.pick([value for value in self.values if value[1] == symbol])
        J = self.pick([J for J in range(1, min(X, 8) + 1) if W % J == 0])
        args = {"x": x, "chosen": chosen, "bias": self.weight((X, W // J)).name}
        self.call("expert_bias", args, {"n_used": J}, symbol, W)

    def draw_expert_linear(self) -> None:
        choices = [value for value in self.values if value[2] <= 64]
        if not choices:
            return
        chosen, symbol, X = self.pick(choices)
        x, _, W = self.value(symbol)
        J = self.pick([J for J in range(1, min(X, 8) + 1) if W % J == 0])
        K = self.pick((W, W // J))
        N = int(self.pick((1, 16, 33)))
        weight = self.weight((X, N, K)).name
        args = {"x": x, "chosen": chosen, "weight": weight}
        self.call("expert_linear", args, {"n_used": J}, symbol, J * N)

    def draw_linear_per_head(self) -> None:
        x, symbol, W = self.value()
        H = self.pick([H for H in range(1, 9) if W % H == 0])
        N = int(self.pick((1, 16, 33)))
        self.call("linear_per_head", {"x": x, "weight": self.weight((H, N, W // H)).name}, {}, symbol, H * N)

    def draw_experts_again(self) -> None:
        """The same rows to the same experts, as one input or as one for each slot."""
        calls = [call for call in self.calls if call.op == "expert_linear"]
        if not calls:
            return
        earlier = self.pick(calls)
        _, symbol, W = next(value for value in self.values if value[0] == earlier.args["x"])
        X = next(width for name, _, width in self.values if name == earlier.args["chosen"])
        J = int(earlier.attrs["n_used"])
        N = int(self.pick((1, 16, 33)))
        weight = self.weight((X, N, self.pick([K for K in (W, W // J) if K * J == W or K == W])))
        self.call("expert_linear", earlier.args | {"weight": weight.name}, {"n_used": J}, symbol, J * N)

    def draw_attention_again(self) -> None:
        """Other keys into a cache that was read, values that were there long before, and the same question again."""
        calls = [call for call in self.calls if call.op.startswith("attention")]
        if not calls:
            return
        earlier = self.pick(calls)
        cache = next(cache for cache in self.caches if cache.name == earlier.args["cache"])
        fits = [
            [name for name, symbol, width in self.values if (symbol, width) == ("T", cache.n_kv_heads * size)]
            for size in (cache.head_dim, cache.value_dim)
        ]
        attrs = {"n_kv_heads": cache.n_kv_heads, "head_dim": cache.head_dim, "value_dim": cache.value_dim}
        self.calls.append(
            Call("store_kv", {"k": self.pick(fits[0]), "v": self.pick(fits[1]), "cache": cache.name}, attrs)
        )
        width = int(earlier.attrs["n_heads"]) * cache.value_dim
        self.call(earlier.op, earlier.args, earlier.attrs, "T", width)

    def draw_expert_sum(self) -> None:
        shares, symbol, J = self.pick(self.values)
        x, _, W = self.pick([value for value in self.values if value[1] == symbol and value[2] % J == 0])
        self.call("expert_sum", {"x": x, "shares": shares}, {"n_used": J, "width": W // J}, symbol, W // J)

    def draw_take_of_heads(self) -> None:
        x, symbol, width = self.value()
        n_heads = self.pick([count for count in range(1, width + 1) if width % count == 0])
        start = int(self.rng.integers(0, width // n_heads))
        size = int(self.rng.integers(1, width // n_heads - start + 1))
        attrs = {"n_heads": n_heads, "start": start, "size": size}
        self.call("take_of_heads", {"x": x}, attrs, symbol, n_heads * size)

    def draw_join_heads(self) -> None:
        a, symbol, A = self.value()
        b, B = self.pick([(value, width) for value, other, width in self.values if other == symbol])
        n_heads = self.pick([count for count in range(1, min(A, B) + 1) if A % count == 0 and B % count == 0])
        if A + B <= MAX_WIDTH:
            self.call(
                "join_heads", {"a": a, "b": b}, {"n_heads": n_heads, "head_dim": (A + B) // n_heads}, symbol, A + B
            )

    def draw_take_rows(self) -> None:
        x, _, width = self.value("T")
        self.call("take_rows", {"x": x, "rows": ROWS}, {}, "R", width)

    def draw_store_kv(self) -> None:
        k, _, width = self.value("T")
        fits = [cache for cache in self.caches if cache.n_kv_heads * cache.head_dim == width]
        v, _, v_width = self.value("T")
        fits = [cache for cache in fits if cache.n_kv_heads * cache.value_dim == v_width]
        if fits and self.rng.random() < 0.7:
            cache = self.pick(fits)
        else:
            v, v_width = (k, width) if self.rng.random() < 0.4 else (v, v_width)
            G = self.pick([G for G in (1, 2, 3, 4, 8, 16) if width % G == 0 and v_width % G == 0])
            kv_type = self.pick(("f16", "q8_0"))
            cache = PagedKvSpec(f"kv.{len(self.caches)}", G, width // G, v_width // G, kv_type)
            self.caches.append(cache)
        attrs = {"n_kv_heads": cache.n_kv_heads, "head_dim": cache.head_dim, "value_dim": cache.value_dim}
        self.calls.append(Call("store_kv", {"k": k, "v": v, "cache": cache.name}, attrs))

    def draw_attention(self) -> None:
        q, _, width = self.value("T")
        fits = [c for c in self.caches if width % (c.n_kv_heads * c.head_dim) == 0]
        if not fits:
            self.draw_store_kv()
            return
        cache = self.pick(fits)
        n_heads = width // cache.head_dim
        attrs = {"n_heads": n_heads, "n_kv_heads": cache.n_kv_heads}
        attrs |= {"head_dim": cache.head_dim, "value_dim": cache.value_dim, "scale": cache.head_dim**-0.5}
        attrs |= {"window": self.pick((1, 7, 64, 600, (1 << 31) - 1)), "softcap": self.pick((0.0, 0.0, 30.0))}
        args = {"q": q, "cache": cache.name}
        if self.rng.random() < 0.3:
            args["sinks"] = self.weight((n_heads,), FLOAT_KINDS).name
        op = "attention_sinks" if "sinks" in args else "attention"
        self.call(op, args, attrs, "T", n_heads * cache.value_dim)


PLAIN = tuple(name for name, op in OPS.items() if op.by_row and op.in_place and name != "rope")
NUMBERS = {
    "alpha": (1.702,),
    "alpha_n": (0.9,),
    "alpha_p": (0.8,),
    "beta": (0.1, 0.5),
    "by": (0.5, -3.0),
    "cap": (0.5, 30.0),
    "eps": (1e-5, 1e-3, -1e-6),
    "length": (1.0, 48.0, 8192.0),
    "limit": (0.5, 7.0),
    "offset": (0.0, 1.0),
}


def numbers_of(name: str, attr: Attr, head_dim: int) -> list[float]:
    """What a plain op's attribute may be."""
    return [number for number in NUMBERS.get(name, (head_dim,)) if attr.low <= number <= attr.high]


DRAWN = (
    *("linear", "linear", *["plain"] * 7, "rope", "rope", "route"),
    *("linear_per_head", "expert_linear", "expert_linear", "experts_again", "expert_bias", "expert_sum", "take_rows"),
    *("take_of_heads", "join_heads"),
    *("store_kv", "attention", "attention", "attention_again", "attention_again"),
)


def random_program(rng: Rng) -> Program:
    """A program that verifies."""
    return Drawer(rng).program(int(rng.integers(2, 14)))


def random_step(rng: Rng) -> Step:
    """One to four sequences at any position, with pages of their own; full pages before may be another's."""
    B = int(rng.integers(1, 5))
    lengths = [int(n) for n in rng.integers(1, MAX_TOKENS // B + 1, size=B)]
    free = [int(page) for page in rng.permutation(KV_PAGES)]
    most = KV_PAGES // B
    positions, pages = [], []
    for length in lengths:
        start = int(rng.integers(0, most * PAGE_SLOTS - length + 1)) if rng.random() < 0.7 else 0
        table = [free.pop() for _ in range(-(-(start + length) // PAGE_SLOTS))]
        for i in range(start // PAGE_SLOTS):
            if rng.random() < 0.2:  # a prefix that is shared: whoever writes it, it is not this sequence
                free.append(table[i])
                table[i] = int(rng.integers(KV_PAGES)) if not pages else int(rng.choice(pages[0]))
        positions.append(start)
        pages.append(tuple(table))
    T = sum(lengths)
    rows = rng.integers(0, T, size=int(rng.integers(0, min(T, 9) + 1)))
    step = Step.of(lengths, positions, pages, rows)
    return step if writes_apart(step) else Step.of(lengths[:1], positions[:1], pages[:1], [])


def writes_apart(step: Step) -> bool:
    """Whether no page that one sequence writes is in the table of another, as an engine sees to."""
    for b, (length, start) in enumerate(zip(step.lengths, step.positions, strict=True)):
        written = step.pages[b][start // PAGE_SLOTS : (start + length - 1) // PAGE_SLOTS + 1]
        if len(set(step.pages[b])) < len(step.pages[b]):
            return False
        if any(set(written) & set(table) for other, table in enumerate(step.pages) if other != b):
            return False
    return True


def random_input(rng: Rng, verified: Verified, T: int) -> Array:
    """What enters with a step of T tokens."""
    if verified.input.dtype == "int32":
        tables = [c.args["weight"] for c in verified.program.calls if c.op == "embed"]
        return rng.integers(0, min((int(verified.shapes[t][0]) for t in tables), default=9), size=T).astype(np.int32)
    return rng.normal(size=(T, int(verified.input.shape[1]))).astype(np.float32)


def with_output(program: Program, name: str, verified: Verified) -> Program:
    """The same program with another of its values as the output."""
    output = TensorSpec(name, "float32", verified.shapes[name])
    return msgspec.structs.replace(program, outputs=(output,))


@dataclass
class Runs:
    """A program on a device, once for each value that it computes.

    Attributes:
        caches: what the reference device would have in its caches after the steps so far.
    """

    device: Device
    program: Program
    threads: int = 1
    caches: dict[str, KvCache] = field(default_factory=dict)

    def __enter__(self) -> Runs:
        self.verified = verified = verify(self.program)
        self.weights = {}
        self.executables: dict[str, Any] = {}
        try:
            for spec in self.program.weights:
                data = weight_bytes(type_of_id(spec.type).name, spec.shape)
                self.weights[spec.name] = self.device.load_weight(spec, memoryview(data))
            self.caches = {spec.name: KvCache.empty(spec, KV_PAGES) for spec in self.program.states}
            sizes = {"kv_pages": KV_PAGES, "max_tokens": MAX_TOKENS, "max_rows": 9, "threads": self.threads}
            for call in self.program.calls:
                if "out" in call.args:
                    changed = verify(with_output(self.program, call.args["out"], verified))
                    made = self.device.compile(changed, self.weights, **sizes)
                    self.executables[call.args["out"]] = made
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for item in (*self.executables.values(), *self.weights.values()):
            item.close()

    def check(self, array: Array, step: Step) -> None:
        """Run a step and compare every value.

        Raises:
            AssertionError: naming the call whose promise is broken.
        """
        made = {name: np.array(executable.run(array, step)) for name, executable in self.executables.items()}
        values: dict[str, Any] = {self.verified.input.name: array, POSITIONS: step.token_positions()}
        values |= made | {ROWS: np.array(step.rows, np.int32)}
        kinds = {spec.name: type_of_id(spec.type) for spec in self.program.weights}
        for name, kind in kinds.items():
            values[name] = weight_values(kind.name, self.verified.shapes[name])
        values |= self.caches
        for at, call in enumerate(self.program.calls):
            op = OPS[call.op]
            read = {n: values[call.args[n]] for n in op.names("input", "weight", "state") if n in call.args}
            given = {"step": step} if op.uses_pages else {}
            with np.errstate(all="ignore"):
                expected = FUNCTIONS[call.op](**given, **read, **call.attrs)
                if "out" not in call.args:
                    continue
                out = values[call.args["out"]]
                assert out.shape == expected.shape, f"call {at}, {call}: {out.shape}, expected {expected.shape}"
                if not len(expected):
                    continue
                bound = bound_of(call, read, expected, kinds.get(call.args.get("weight", "")))
                wrong = ~(np.abs(out - expected) <= bound) & kept(read, expected)
            assert not wrong.any(), (
                f"call {at} of {len(self.program.calls)}, {call}: {np.argwhere(wrong)[:3].tolist()} of {out.shape}: "
                f"{out[wrong][:3]}, expected {expected[wrong][:3]}"
            )


def kept(read: dict[str, Any], expected: Array) -> Array:
    """Where an op's promise is asked for: numbers of a common size, in rows that have read no others."""
    good = np.isfinite(expected) & (np.abs(expected) < LARGEST)
    for name, value in read.items():
        if isinstance(value, KvCache):
            good &= bool(np.isfinite(value.k).all() and np.isfinite(value.v).all())
        elif value.ndim == 2 and value.dtype == np.float32 and len(value) == len(expected) and name != "weight":
            good &= (np.abs(value) < LARGEST).all(axis=1, keepdims=True)
        elif name == "x" and value.ndim == 2:  # take_rows: copies what it finds
            good &= True
    return good


def bound_of(call: Call, read: dict[str, Any], expected: Array, kind: QuantType | None) -> Array:
    """How far from *expected* an output may be."""
    op = OPS[call.op]
    match call.op:
        case "linear":
            return _linear_bound(read["x"], read["weight"], kind)
        case "expert_linear":
            return _expert_bound(read["x"], read["chosen"], read["weight"], int(call.attrs["n_used"]), kind)
        case "linear_per_head":
            H = len(read["weight"])
            return _expert_bound(read["x"], np.ones((len(read["x"]), H)), read["weight"], H, kind)
        case "attention" | "attention_sinks":
            return _attention_bound(op, call.attrs["scale"], read["q"], read["cache"], expected)
        case "expert_sum":
            largest = [np.abs(read[name]).max(axis=1, keepdims=True) for name in ("x", "shares")]
            return op.rtol * 8 * largest[0] * largest[1] + op.atol * (1 + np.abs(expected))
        case "layer_norm":
            scale = np.abs(expected) + np.abs(expected).max(axis=1, keepdims=True)
            return 4 * op.rtol * (scale + np.abs(read["x"]).max(axis=1, keepdims=True))
        case "choose_experts":
            return _choice_bound(call, read, expected)
        case "xielu":
            return 4 * op.rtol * (np.abs(expected) + np.abs(read["x"])) + op.atol
        case "rope" | "rms_norm" | "l2_norm" | "embed":
            return 4 * op.rtol * (np.abs(expected) + np.abs(expected).max(axis=1, keepdims=True)) + op.atol
        case _:
            return 2 * op.rtol * np.abs(expected) + 2 * op.atol


def _choice_bound(call: Call, read: dict[str, Any], expected: Array) -> Array:
    """Where the marks at the border of a choice are all but equal, the rounding of one decides who is chosen."""
    n_groups = int(call.attrs["n_groups"])
    if "bias" not in read and n_groups == 1:
        return np.zeros(expected.shape)
    marks = SCORES_OF[call.attrs["scores"]](read["logits"].astype(np.float64)) + read.get("bias", 0.0)
    by_group = np.sort(marks.reshape(len(marks), n_groups, -1), axis=2)[:, :, -2:].sum(axis=2)
    unclear = _is_close(by_group, int(call.attrs["n_groups_used"]))
    for count in range(1, marks.shape[1]):  # among the open groups the border may be any two neighbours
        unclear |= _is_close(marks, count) & (count <= int(call.attrs["n_used"]) * n_groups)
    return np.where(unclear[:, None], 1.0, 0.0) * np.ones(expected.shape)


def _is_close(marks: Array, count: int) -> Array:
    """Whether the last mark of the *count* largest of a row and the next one are all but equal."""
    if count >= marks.shape[1]:
        return np.zeros(len(marks), bool)
    falling = -np.sort(-marks, axis=1)
    last, following = falling[:, count - 1], falling[:, count]
    return ~(np.abs(last - following) > 1e-5 * (1 + np.abs(last)))


def _attention_bound(op: Op, scale: float, q: Array, cache: KvCache, expected: Array) -> Array:
    """Of a q8_0 cache, some numbers may be rounded the other way: what is drawn here has ties."""
    k, v = (np.abs(numbers.astype(np.float64)).max() for numbers in (cache.k, cache.v))
    if cache.type == "f16":
        return 5 * op.rtol * (v + np.abs(expected)) + op.atol
    return v * (5 * Q8_0_RTOL + 2 / 127 + 6 * scale * float(np.abs(q).max()) * k / 127) + op.atol


def _linear_bound(x: Array, weight: Array, kind: QuantType | None) -> Array:
    """Float sums, and every number of x rounded by half a step in the direction that is worst."""
    bound = FLOAT_RTOL * linear_scale(x, weight) + 1e-30
    if kind is None or kind.name in FLOAT_KINDS:
        return bound
    half = np.abs(x.astype(np.float64).reshape(len(x), -1, kind.block_size)).max(axis=-1) / 254
    sums = np.abs(weight.astype(np.float64)).reshape(len(weight), -1, kind.block_size).sum(axis=-1)
    return bound + 1.01 * half @ sums.T


def _expert_bound(x: Array, chosen: Array, weight: Array, J: int, kind: QuantType | None) -> Array:
    K = weight.shape[2]
    slots = np.argsort(chosen == 0, axis=1, kind="stable")[:, :J]
    rows = np.broadcast_to(x.reshape(len(x), x.shape[1] // K, K), (len(x), J, K))
    bounds = [
        [_linear_bound(rows[t, j : j + 1], weight[e], kind)[0] for j, e in enumerate(experts)]
        for t, experts in enumerate(slots)
    ]
    return np.array(bounds).reshape(len(x), J * weight.shape[1])


def mutated(rng: Rng, program: Program) -> Program:
    """The program with some of its parts changed: it may be refused, or be another valid one."""
    plain = msgspec.to_builtins(program)
    pools: dict[type, list[Any]] = {
        str: [],
        int: [0, 1, 2, 3, 16, 32, 1 << 20, 1 << 30, -1],
        float: [0.0, 1.0, -1.0, 1e9],
    }
    for leaf in _leaves(plain):
        pools.setdefault(type(leaf), []).append(leaf)
    for _ in range(int(rng.integers(1, 4))):
        part = plain
        while True:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            if not keys:
                break
            key = keys[int(rng.integers(len(keys)))]
            if isinstance(part[key], dict | list | tuple) and rng.random() < 0.9:
                if isinstance(part[key], tuple):
                    part[key] = list(part[key])
                part = part[key]
                continue
            _change(rng, part, key, pools)
            break
    return Program.from_bytes(msgspec.msgpack.encode(plain))


def _change(rng: Rng, part: Any, key: Any, pools: dict[type, list[Any]]) -> None:
    choice = rng.random()
    if choice < 0.75 or isinstance(part, dict):
        pool = pools.get(type(part[key]), [part[key]])
        part[key] = pool[int(rng.integers(len(pool)))]
    elif choice < 0.85:
        part.insert(int(rng.integers(len(part) + 1)), part[key])
    elif choice < 0.95:
        other = int(rng.integers(len(part)))
        part[key], part[other] = part[other], part[key]
    else:
        del part[key]


def _leaves(plain: Any) -> Iterator[Any]:
    if isinstance(plain, dict):
        yield from plain.values()
    elif isinstance(plain, list | tuple):
        for item in plain:
            yield from _leaves(item) if isinstance(item, dict | list | tuple) else (item,)


def hostile_step(rng: Rng) -> Step:
    """A step with numbers out of place, most of the time."""
    step = random_step(rng)
    parts: list[Any] = [list(step.lengths), list(step.positions), [list(t) for t in step.pages], list(step.rows)]
    for _ in range(int(rng.integers(0, 3))):
        part = parts[int(rng.integers(4))]
        if part and isinstance(part[0], list):
            part = part[int(rng.integers(len(part)))]
        if part:
            part[int(rng.integers(len(part)))] = int(
                rng.choice([-1, 0, 1, 7, 41, 64, KV_PAGES, 1 << 20, (1 << 31) - 1])
            )
    return Step(tuple(parts[0]), tuple(parts[1]), tuple(map(tuple, parts[2])), tuple(parts[3]))


class Fuzzer:
    """Random programs by number: the same number is the same program, steps and threads."""

    def __init__(self) -> None:
        self.devices = [CpuDevice(threads=2, budget=Budget(BUDGET), isa=isa) for isa in isa_names()]
        self.met: Counter[str] = Counter()
        self.slowest_verify_s = 0.0

    def close(self) -> None:
        for device in self.devices:
            device.close()

    def valid(self, number: int) -> None:
        """A program that must run, for some steps, and be right."""
        rng = np.random.default_rng([1, number])
        device = self.devices[0] if rng.random() < 0.7 else self.devices[int(rng.integers(len(self.devices)))]
        program = random_program(rng)
        self.met.update(call.op for call in program.calls)
        with Runs(device, program, threads=int(rng.integers(1, 3))) as runs:
            self.met["programs"] += len(runs.executables)
            for _ in range(int(rng.integers(1, 4))):
                step = random_step(rng)
                runs.check(random_input(rng, runs.verified, step.T), step)
        self._all_is_freed(device)

    def hostile(self, number: int) -> None:
        """A program changed at random, which is refused or runs; steps likewise."""
        rng = np.random.default_rng([2, number])
        device = self.devices[int(rng.integers(len(self.devices)))]
        began = time.process_time()
        try:
            program = mutated(rng, random_program(rng))
            verify(program)
        except OllamaZmqError as error:
            self._refused(error)
            return
        finally:
            self.slowest_verify_s = max(self.slowest_verify_s, time.process_time() - began)
        try:
            self._run_hostile(rng, device, program)
        except OllamaZmqError as error:
            self._refused(error)
        self._all_is_freed(device)

    def rubbish(self, number: int) -> None:
        """The bytes of a program with some changed, cut or copied elsewhere."""
        rng = np.random.default_rng([3, number])
        data = bytearray(random_program(rng).to_bytes())
        for _ in range(int(rng.integers(1, 8))):
            at, length = int(rng.integers(len(data))), int(rng.integers(1, 30))
            match int(rng.integers(4)):
                case 0:
                    data[at] = int(rng.integers(256))
                case 1:
                    data[at : at + length] = rng.bytes(length)
                case 2:
                    data[at:at] = data[int(rng.integers(len(data))) :][:length]
                case _:
                    del data[at : at + length]
            data = data or bytearray(1)
        began = time.process_time()
        try:
            verify(Program.from_bytes(bytes(data)))
            self.met["rubbish that verifies"] += 1
        except OllamaZmqError as error:
            self._refused(error)
        self.slowest_verify_s = max(self.slowest_verify_s, time.process_time() - began)

    def _run_hostile(self, rng: Rng, device: Device, program: Program) -> None:
        device.check(verify(program))
        device.executable_nbytes(verify(program), kv_pages=KV_PAGES, max_tokens=MAX_TOKENS)
        if any(math.prod(spec.shape) > MOST_NUMBERS for spec in program.weights):
            self.met["mutants with large weights"] += 1
            return
        with Runs(device, program, threads=2) as runs:
            if not runs.executables:
                return  # nothing was planned that would bound the input
            self.met["mutants that ran"] += 1
            for _ in range(2):
                step = hostile_step(rng)
                try:
                    array = random_input(rng, runs.verified, int(np.clip(sum(step.lengths), 0, MAX_TOKENS)))
                    if writes_apart_if_valid(step):
                        runs.check(array, step)
                    else:
                        for executable in runs.executables.values():
                            executable.run(array, step)
                        return  # what two sequences wrote into one page is anybody's
                    self.met["hostile steps that ran"] += 1
                except ShapeError:
                    self.met["hostile steps refused"] += 1

    def _refused(self, error: OllamaZmqError) -> None:
        assert str(error).isprintable()
        self.met[f"mutants refused: {type(error).__name__}"] += 1

    def _all_is_freed(self, device: Device) -> None:
        assert device.budget.used == 0


def writes_apart_if_valid(step: Step) -> bool:
    """Whether the step is one that could be checked, not only run."""
    try:
        step.check(max_tokens=MAX_TOKENS, max_rows=9, kv_pages=KV_PAGES, uses_pages=True)
    except ShapeError:
        return True  # it will be refused
    return writes_apart(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    fuzzer, number, until = Fuzzer(), given.seed * 10_000_000, time.monotonic() + given.seconds
    while time.monotonic() < until:
        for kind in (fuzzer.valid, fuzzer.hostile, fuzzer.hostile, fuzzer.rubbish, fuzzer.rubbish):
            try:
                kind(number)
            except BaseException:
                print(f"{kind.__name__}({number})", flush=True)
                raise
        number += 1
    fuzzer.close()
    print(f"{number - given.seed * 10_000_000} numbers, slowest decoding and verifying {fuzzer.slowest_verify_s:.3f} s")
    for name, count in fuzzer.met.most_common():
        print(f"{count:9} {name}")


if __name__ == "__main__":
    main()
