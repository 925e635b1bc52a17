"""How near is each op to what the machine can do?

Decode is compared with reading memory: a weight of 128 MB is streamed past one token, and the limit is the same number
of bytes read in order from huge pages by the same threads, measured beside each case since it moves with the load.
Several tokens past such a weight are compared with the slower of reading it and of multiplying as fast as a prefill
of 512 does.
Prefill and attention are compared with the multiply-adds of one float32 mat-mul tile in cache (``f32 in cache``), so
int8 formats may pass 100 %. Each case is the best of several repeats; all limits are measured in the same run.

    python benchmarks/bench_ops.py [--threads N] [--isa generic|avx2|avx2-vnni|avx512] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np

from ollama_zmq.devices.base import Budget, Step
from ollama_zmq.formats.quants import QuantType, row_nbytes
from ollama_zmq.kernels.cpu.device import CpuDevice
from ollama_zmq.kernels.cpu.memory import Memory
from ollama_zmq.kernels.cpu.weights import FORMATS
from ollama_zmq.ops.builder import Builder, Value
from ollama_zmq.ops.program import WeightSpec, verify
from ollama_zmq.ops.state import KV_TYPES, PAGE_SLOTS, PagedKvSpec

GIB = 1 << 30
STREAMED_NBYTES = 128 << 20
LINE = "{op:<22}{T:>5}  {sizes:<22}{us:>11.1f}{rate:>9.1f} {unit:<7}{share:>5.0%}"
HEADER = f"{'op':<22}{'T':>5}  {'sizes':<22}{'us':>11}{'rate':>9} {'unit':<7}{'limit':>5}"


@dataclass(frozen=True)
class Case:
    """One line: what ran, how long, how fast, and which share of the limit that is."""

    op: str
    T: int
    sizes: str
    us: float
    rate: float
    unit: str
    share: float


class Bench:
    """Runs one-op programs on a device and knows the limits of the machine."""

    def __init__(self, device: CpuDevice, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self.memory = Memory(STREAMED_NBYTES)
        self.memory.bytes()[:] = 1
        self.read_gb_s = self.read_limit()
        self.gflop_s = 2 * self._macs("F32", 256, 256, 96)[1] / 1e9

    def read_limit(self) -> float:
        """Return the GB per second at which the device's threads read memory now."""
        words = self.memory.bytes().view(np.uint64)
        seconds = min(elapsed(lambda: self.device.pool.read(words)) for _ in range(self.repeats))
        return STREAMED_NBYTES / seconds / 1e9

    def time(
        self,
        ops: Builder,
        out: Value,
        x: np.ndarray,
        step: Step,
        *,
        kv_pages: int = 0,
        given: Mapping[str, np.ndarray] = MappingProxyType({}),
        fill: Sequence[Step] = (),
    ) -> float:
        """Return the best seconds of one run of a program whose weights, but for those *given*, have no meaning.

        Args:
            fill: steps that write the KV cache before; pages that nobody wrote are one page of zeros.
        """
        verified = verify(ops.program("out", out))
        weights = {
            spec.name: self.device.load_weight(spec, memoryview(given[spec.name]).cast("B"))
            if spec.name in given
            else self.device.blank_weight(spec)
            for spec in verified.program.weights
        }
        executable = self.device.compile(verified, weights, kv_pages=kv_pages, max_tokens=len(x))
        try:
            for part in fill:
                executable.run(x[: part.T], part)
            return min(elapsed(lambda: executable.run(x[: step.T], step)) for _ in range(self.repeats))
        finally:
            executable.close()
            for weight in weights.values():
                weight.close()

    def _macs(self, kind: str, N: int, K: int, T: int) -> tuple[float, float, int]:
        """Return seconds, multiply-adds per second and bytes of one linear."""
        spec = WeightSpec("w", QuantType[kind].id, (N, K))
        ops = Builder("linear")
        out = ops.linear(ops.input("x", ("T", K)), ops.weight(spec))
        seconds = self.time(ops, out, np.ones((T, K), np.float32), Step.of([T], [0]))
        return seconds, N * K * T / seconds, self.device.weight_nbytes(spec)

    def decode(self, kind: str) -> Case:
        """One token past a weight that no cache holds."""
        K = 4096
        N = STREAMED_NBYTES // row_nbytes(QuantType[kind], K)
        limit = self.read_limit()
        seconds, _, nbytes = self._macs(kind, N, K, 1)
        rate = nbytes / seconds / 1e9
        share = rate / max(limit, self.read_limit())
        return Case(f"linear {kind}", 1, f"N={N} K={K}", seconds * 1e6, rate, "GB/s", share)

    def together(self, kind: str, T: int) -> Case:
        """Tokens of T streams past a weight that no cache holds."""
        K = 4096
        N = STREAMED_NBYTES // row_nbytes(QuantType[kind], K)
        limit = self.read_limit()
        seconds, macs, nbytes = self._macs(kind, N, K, T)
        reading = nbytes / max(limit, self.read_limit()) / 1e9
        multiplying = N * K * T / self._macs(kind, 4096, K, 512)[1]
        share = max(reading, multiplying) / seconds
        return Case(f"linear {kind}", T, f"N={N} K={K}", seconds * 1e6, 2 * macs / 1e9, "GFLOP/s", share)

    def prefill(self, kind: str, T: int) -> Case:
        seconds, macs, _ = self._macs(kind, 4096, 4096, T)
        rate = 2 * macs / 1e9
        return Case(f"linear {kind}", T, "N=4096 K=4096", seconds * 1e6, rate, "GFLOP/s", rate / self.gflop_s)

    def rows(self, op: str, T: int, D: int = 4096) -> Case:
        """An op on rows, counted in bytes read and written."""
        ops = Builder(op)
        x = ops.input("x", ("T", D))
        match op:
            case "rms_norm":
                out, touched = ops.rms_norm(x, ops.weight(WeightSpec("w", 0, (D,))), eps=1e-5), 2
            case "gated":
                out, touched = ops.gated(x, x, function="silu"), 3
            case "rope":
                sizes = {"n_heads": D // 128, "head_dim": 128, "rotary_dim": 128}
                out, touched = ops.rope(x, ops.positions, None, **sizes, theta=1e4), 2
            case _:
                out, touched = ops.add(x, x), 3
        seconds = self.time(ops, out, np.ones((T, D), np.float32), Step.of([T], [0]))
        rate = touched * 4 * T * D / seconds / 1e9
        return Case(op, T, f"D={D}", seconds * 1e6, rate, "GB/s", rate / self.read_gb_s)

    def experts(self, kind: str, T: int, X: int = 8, J: int = 2) -> Case:
        """Tokens that use *J* of *X* experts each: bytes of one token's, which no cache holds, else multiply-adds."""
        K = 4096
        N = STREAMED_NBYTES // J // row_nbytes(QuantType[kind], K) if T == 1 else 4096
        rng = np.random.default_rng(0)
        router, x = (rng.normal(size=(rows, K)).astype(np.float32) for rows in (X, T))
        ops = Builder("experts")
        token = ops.input("x", ("T", K))
        chosen, _ = ops.route(ops.linear(token, ops.weight(WeightSpec("r", 0, (X, K)))), n_used=J)
        spec = WeightSpec("w", QuantType[kind].id, (X, N, K))
        out = ops.expert_linear(token, chosen, ops.weight(spec), n_used=J)
        limit = self.read_limit()
        seconds = self.time(ops, out, x, Step.of([T], [0]), given={"r": router})
        name, sizes = f"experts {kind}", f"X={X} J={J} N={N}"
        if T == 1:
            rate = self.device.weight_nbytes(spec) * J / X / seconds / 1e9
            return Case(name, T, sizes, seconds * 1e6, rate, "GB/s", rate / max(limit, self.read_limit()))
        rate = 2 * J * N * K * T / seconds / 1e9
        return Case(name, T, sizes, seconds * 1e6, rate, "GFLOP/s", rate / self.gflop_s)

    def attention(self, T: int, H: int, G: int, E: int) -> Case:
        """A prefill of T tokens, in multiply-adds."""
        ops = Builder("attention")
        q = ops.input("q", ("T", H * E))
        cache = ops.cache("kv", n_kv_heads=G, head_dim=E)
        out = ops.attention(q, cache, n_heads=H, n_kv_heads=G, head_dim=E, scale=E**-0.5)
        pages = -(-T // PAGE_SLOTS)
        step = Step.of([T], [0], [range(pages)])
        seconds = self.time(ops, out, np.ones((T, H * E), np.float32), step, kv_pages=pages)
        rate = 2 * T * (T + 1) * H * E / seconds / 1e9
        return Case("attention", T, f"C={T} H={H} G={G} E={E}", seconds * 1e6, rate, "GFLOP/s", rate / self.gflop_s)

    def attention_decode(self, kv_type: str, context: int, H: int, G: int, E: int) -> Case:
        """One token of a sequence of *context*, in bytes of keys and values; as many layers as no cache holds."""
        pages, spec = -(-context // PAGE_SLOTS), PagedKvSpec("kv", G, E, E, kv_type)
        layers = -(-STREAMED_NBYTES // spec.nbytes(pages))
        ops = Builder("attention")
        token_ids = ops.input("token_ids", ("T",), "int32")
        heads = {"q": H, "k": G, "v": G}
        q, k, v = (ops.embed(token_ids, ops.weight(WeightSpec(name, 0, (1, n * E)))) for name, n in heads.items())
        for i in range(layers):
            cache = ops.cache(f"kv.{i}", n_kv_heads=G, head_dim=E, kv_type=kv_type)
            ops.store_kv(k, v, cache, n_kv_heads=G, head_dim=E)
            out = ops.attention(q, cache, n_heads=H, n_kv_heads=G, head_dim=E, scale=E**-0.5)
        fill = [Step.of([PAGE_SLOTS] * 8, [0] * 8, [[page] for page in range(i, i + 8)]) for i in range(0, pages, 8)]
        step, x = Step.of([1], [context - 1], [range(pages)]), np.zeros(8 * PAGE_SLOTS, np.int32)
        limit = self.read_limit()
        seconds = self.time(ops, out, x, step, kv_pages=pages, fill=fill) / layers
        rate, limit = spec.nbytes(pages) / seconds / 1e9, max(limit, self.read_limit())
        sizes = f"C={context} H={H} G={G} E={E}"
        return Case(f"attention {kv_type}", 1, sizes, seconds * 1e6, rate, "GB/s", rate / limit)


def cases(bench: Bench, quick: bool) -> Iterator[Case]:
    """Yield every case; with *quick* the formats of the models we test with."""
    kinds = ["Q4_1", "Q8_0", "Q4_K", "Q6_K"] if quick else [k.name for k in QuantType if k.id in FORMATS]
    yield from (bench.decode(kind) for kind in kinds)
    yield from (bench.together(kind, T) for kind in kinds for T in (4, 8))
    yield from (bench.prefill(kind, T) for kind in kinds for T in ((512,) if quick else (64, 512)))
    yield from (bench.rows(op, T) for op in ("add", "rms_norm", "gated", "rope") for T in (1, 512))
    yield from (bench.experts(kind, T) for kind in ("Q8_0", "Q4_K") for T in (1, 8, 512))
    for H, G, E in ((9, 3, 64), (32, 8, 128)):
        yield from (bench.attention_decode(kind, context, H, G, E) for context in (512, 8192) for kind in KV_TYPES)
        yield from (bench.attention(T, H, G, E) for T in (512, 2048))


def elapsed(run: object) -> float:
    """Return the seconds that one call of *run* takes."""
    assert callable(run)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa")
    parser.add_argument("--quick", action="store_true", help="four formats, one prefill size")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    device = CpuDevice(threads=args.threads, budget=Budget(4 * GIB), isa=args.isa)
    bench = Bench(device, args.repeats)
    print(f"{device.name}\nread {bench.read_gb_s:.1f} GB/s, float32 in cache {bench.gflop_s:.0f} GFLOP/s\n\n{HEADER}")
    done = []
    for case in cases(bench, args.quick):
        done.append(case)
        print(LINE.format(**asdict(case)), flush=True)
    if args.json:
        record = {"device": device.name, "machine": platform.platform(), "date": time.strftime("%Y-%m-%d")}
        record |= {"read_gb_s": bench.read_gb_s, "gflop_s": bench.gflop_s, "cases": [asdict(case) for case in done]}
        with open(args.json, "w") as file:
            json.dump(record, file, indent=1)
    device.close()


if __name__ == "__main__":
    main()
