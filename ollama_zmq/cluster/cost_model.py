"""What one token asks of a place, and how fast places are: together, seconds.

    a token   sum over tensor types of bytes read / bytes per second + calls * call_s
              + bytes of keys and values in a typical context / (CACHE_SHARE * bytes per second)
    a row     sum over tensor types of multiply-adds / multiply-adds per second + values / values per second
              + multiply-adds of attention within a prompt / (CACHE_SHARE * those of F16 per second)

A token that is computed alone takes the first, each of many in one pass the second; so a pass of T rows takes f + k * T
with k the second and f what is left of the first. Attention is not measured at join: it reads keys and values, and
multiplies, at 0.7 to 0.9 of the speed of matrices.

Half a second of measuring sees what else a machine does at the moment: of two equal cores one was measured 1.3 times as
fast as the other, and got 9 of 16 layers. So each counts as fast as the fastest equal device that was measured at most
``IDENTICAL_WITHIN`` times as fast as it: behind a larger difference something lasting is likely.

On the way to a worker and back is a round trip and the bytes of a hidden state, and ``STEP_S``: a step finds a worker
asleep and its caches cold, which the pings that measure a link, one behind the other, do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from ollama_zmq.engine.costs import Line
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.ops.program import Program, WeightSpec, row_floats, verify
from ollama_zmq.ops.state import PAGE_SLOTS, PagedKvSpec
from ollama_zmq.wire.messages import MatrixSpeed

CACHE_SHARE = 0.8
PROMPT_TOKENS = 512
STEP_S, LOCAL_STEP_S = 8e-4, 3e-4
LEAST_PER_S = 1e6
IDENTICAL_WITHIN = 1.5

Matrices = Mapping[int, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What one token asks for.

    Attributes:
        matrices: tensor type -> bytes of the file that it reads, multiply-adds.
        cache_nbytes: keys and values that it reads in a typical context.
        attention_macs: multiply-adds with those before it in a prompt.
        calls: ops. values: numbers that they write.
    """

    matrices: Matrices = field(default_factory=dict)
    cache_nbytes: float = 0.0
    attention_macs: float = 0.0
    calls: float = 0.0
    values: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerProfile:
    """A place that can hold layers.

    Attributes:
        budget: bytes it may use for this model.
        decode_bytes_per_s, prefill_macs_per_s: measured speeds of streaming weights and of multiplying, of tensor types
            that are not in ``matrices``.
        rtt_s, bandwidth_bytes_per_s: of the link, a round trip of one hidden state, and bytes; 0 for the local device.
        share: of this machine's cores that it computes with; 0 for another machine.
        values_per_s, call_s: of ops without a matrix; 0 when that is not known.
        devices: their names, by which equal machines are known; empty when that is not known.
    """

    address: str
    budget: int
    decode_bytes_per_s: float
    prefill_macs_per_s: float = 1e12
    rtt_s: float = 0.0
    bandwidth_bytes_per_s: float = 0.0
    share: float = 0.0
    matrices: Mapping[int, MatrixSpeed] = field(default_factory=dict)
    values_per_s: float = 0.0
    call_s: float = 0.0
    devices: tuple[str, ...] = ()

    @property
    def is_remote(self) -> bool:
        """Whether it is reached over a link."""
        return max(self.rtt_s, self.bandwidth_bytes_per_s) > 0

    def compute(self, cost: CostEstimate) -> Line:
        """Seconds by rows of a pass."""
        row_s = self._row_s(cost)
        return Line(max(self._token_s(cost) - row_s, 0.0), row_s)

    def transfer(self, hidden_size: int) -> Line:
        """Seconds by rows of the transfer, there and back."""
        if not self.is_remote:
            return Line(LOCAL_STEP_S, 0.0)
        moved_s = 8.0 * hidden_size / self.bandwidth_bytes_per_s if self.bandwidth_bytes_per_s else 0.0
        return Line(self.rtt_s + STEP_S, moved_s)

    def as_fast_as_identical(self, profiles: Iterable[WorkerProfile]) -> WorkerProfile:
        """Return this profile with the speeds of the fastest of *profiles* with identical devices, if near enough."""
        identical = [profile for profile in profiles if profile.devices == self.devices and self.devices]
        near = [other for other in identical if other.decode_bytes_per_s <= IDENTICAL_WITHIN * self.decode_bytes_per_s]
        fastest = max(near, key=lambda other: other.decode_bytes_per_s, default=self)
        return replace(
            self,
            decode_bytes_per_s=fastest.decode_bytes_per_s,
            prefill_macs_per_s=fastest.prefill_macs_per_s,
            matrices=fastest.matrices,
            values_per_s=fastest.values_per_s,
            call_s=fastest.call_s,
        )

    def _token_s(self, cost: CostEstimate) -> float:
        reading_s = sum(nbytes / self._reads(kind) for kind, (nbytes, _) in cost.matrices.items())
        return reading_s + cost.cache_nbytes / (CACHE_SHARE * self._reads()) + cost.calls * self.call_s

    def _row_s(self, cost: CostEstimate) -> float:
        multiplying_s = sum(macs / self._multiplies(kind) for kind, (_, macs) in cost.matrices.items())
        attending_s = cost.attention_macs / (CACHE_SHARE * self._multiplies(QuantType.F16.id))
        passing_s = cost.values / max(self.values_per_s, LEAST_PER_S) if self.values_per_s else 0.0
        return multiplying_s + attending_s + passing_s

    def _reads(self, kind: int = -1) -> float:
        """Bytes per second; a peer says them, so they are never nothing."""
        return max(self.matrices.get(kind, self).decode_bytes_per_s, LEAST_PER_S)

    def _multiplies(self, kind: int) -> float:
        return max(self.matrices.get(kind, self).prefill_macs_per_s, LEAST_PER_S)


def matrices_of(specs: Iterable[WeightSpec], shares: Mapping[str, float], nbytes: Mapping[str, int]) -> Matrices:
    """What one token reads and multiplies of *specs*.

    Args:
        shares: name -> share of the matrix that one token multiplies with; a weight that is not there is not counted.
        nbytes: name -> bytes in the file.
    """
    found: dict[int, tuple[float, float]] = {}
    for spec in specs:
        if share := shares.get(spec.name, 0.0):
            read, macs = found.get(spec.type, (0.0, 0.0))
            found[spec.type] = read + share * nbytes[spec.name], macs + share * prod(spec.shape)
    return found


def cost_of(program: Program, matrices: Matrices, context: int) -> CostEstimate:
    """What one token asks of *program* in a *context* of so many slots, its *matrices* being those that it reads."""
    return costs_of(program, [matrices], context)[0]


def costs_of(program: Program, matrices: Sequence[Matrices], context: int) -> tuple[CostEstimate, ...]:
    """The same of each of its layers: their own matrices, and equal parts of what else there is."""
    caches, parts = {s.name: s for s in program.states if isinstance(s, PagedKvSpec)}, len(matrices)
    cache_nbytes = attention_macs = 0.0
    for call in program.calls:
        if call.op.startswith("attention"):
            cache, window = caches[call.args["cache"]], int(call.attrs["window"])
            cache_nbytes += cache.nbytes(1) / PAGE_SLOTS * min(window, context)
            per_slot = int(call.attrs["n_heads"]) * (cache.head_dim + cache.value_dim)
            attention_macs += per_slot * min(window, PROMPT_TOKENS // 2)
    calls, values = len(program.calls) / parts, row_floats(verify(program)) / parts
    return tuple(CostEstimate(own, cache_nbytes / parts, attention_macs / parts, calls, values) for own in matrices)
