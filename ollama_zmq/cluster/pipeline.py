"""Pipeline parallelism of one model: its stages are defined, warmed up, run. It knows nothing of other models.

A state machine (sans-IO): events in, effects out.

Phase      What happens                       Effects                                Next phase
JOINING    define, once the workers joined    Send(Define) to every stage            DEFINING
DEFINING   Defined, weights missing           SendChunk within the credit            DEFINING
DEFINING   Stored                             SendChunk, Progressed                  DEFINING
DEFINING   Ready of the last stage            Send(Run) of one token                 WARMING
WARMING    that token came out                ModelLoaded                            LOADED
LOADED     run                                Send(Run) to the first stage           LOADED
LOADED     Ran                                Send(Run) to the next, or Computed     LOADED
LOADED     Failed                             StepFailed                             LOADED
loading    Failed                             Release to all, LoadFailed             GONE
LOADED     a stage is lost                    Release to the others, ModelLost       GONE
loading    a stage is lost                    Release to the others                  JOINING, to be defined again
loading    ... for the third time             Release to the others, LoadFailed      GONE
loading    no progress at all for too long    Release to all, LoadFailed             GONE
any        release                            Release to all                         GONE

Both loading and steps have deadlines for every worker but the local device, and a worker that lets one pass is lost. A
step's is ``DEADLINE_S`` and ten times what it is expected to take. A load's is ``LOAD_STALL_S`` since its worker last
got further (``Defined``, ``Stored``), and before ``Ready`` the time to read its part from a slow disk. The load as a
whole, the local device's part included, has ``load_timeout_s`` and the same time for the disk since any of them did.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from ollama_zmq.cluster.answers import MAX_US, check_output, check_range
from ollama_zmq.cluster.events import (
    Computed,
    Effect,
    LoadFailed,
    ModelLoaded,
    ModelLost,
    Progressed,
    SendChunk,
    StepFailed,
)
from ollama_zmq.cluster.link import Status
from ollama_zmq.cluster.links import Links
from ollama_zmq.cluster.placement import Placement
from ollama_zmq.cluster.speeds import LatencyWindow, SpeedMeter, stage_cost
from ollama_zmq.cluster.stages import LoadOrder, Missing, Stage
from ollama_zmq.cluster.state import StageState
from ollama_zmq.cluster.uploads import Upload
from ollama_zmq.devices.base import Array
from ollama_zmq.engine.pacing import StageCost, StageTime
from ollama_zmq.engine.requests import Microbatch
from ollama_zmq.errors import CapacityError, OllamaZmqError, RemoteProtocolError, StageLost
from ollama_zmq.wire.messages import Defined, Ran, Ready, Release, Stored

DEADLINE_S = 10.0
DEADLINE_FACTOR = 10.0
LOAD_STALL_S = 20.0
SLOW_DISK_BYTES_PER_S = 20e6
MAX_LOSSES = 2  # a load begins again so many times when workers die under it
WARM_UP = Microbatch(-1, np.zeros(1, np.int32), lengths=(1,), positions=(0,), pages=((0,),), rows=(0,))


class Phase(Enum):
    """How far a model is. The values are shown to people."""

    JOINING = "joining"
    DEFINING = "loading"
    WARMING = "warming up"
    LOADED = "loaded"
    GONE = "gone"


LOADING = frozenset({Phase.DEFINING, Phase.WARMING})


@dataclass(slots=True)
class InFlight:
    """A microbatch on its way: at which stage, since when, until when, and what the stages before took.

    Attributes:
        only_in_flight: no other microbatch, of any model, was at that worker when it was sent there.
    """

    microbatch: Microbatch
    stage: int
    sent_at: float
    deadline: float
    only_in_flight: bool = True
    times: list[StageTime] = field(default_factory=list)


class Pipeline:
    """A model that is loaded or being loaded.

    Args:
        numbers: of microbatches, counted over all models.
        load_timeout_s: how long a load may make no progress at all.

    Attributes:
        stages: in pipeline order; none while its workers join.
        in_flight: microbatch number -> where it is.
        losses: how often a worker was lost while it loaded.
        uploads: worker address -> what it must be sent.
        latency, costs: of each stage, measured and predicted; speed: of the model, measured.
    """

    def __init__(
        self, order: LoadOrder, links: Links, numbers: Iterator[int], load_timeout_s: float = math.inf
    ) -> None:
        self.order = order
        self._load_timeout_s = load_timeout_s
        self._load_ends_at = math.inf  # unless it makes progress
        self.phase = Phase.JOINING
        self.stages: tuple[Stage, ...] = ()
        self.placement: Placement | None = None
        self.in_flight: dict[int, InFlight] = {}
        self._links = links
        self._numbers = numbers
        self._held: dict[bytes, int] = {}  # program -> bytes, by the plan until its worker has counted them
        self._unready: set[bytes] = set()
        self._defined: set[bytes] = set()
        self.uploads: dict[str, Upload] = {}
        self.latency: list[LatencyWindow] = []
        self.speed = SpeedMeter()
        self.costs: tuple[StageCost, ...] = ()
        self.losses = 0
        self._load_deadlines: dict[str, float] = {}  # worker address -> when it must have got further with loading
        self._absent: tuple[str, ...] = ()  # the workers of the order that were not there when it was planned
        self._lost_before: set[str] = set()
        self._left_out: dict[str, str] = {}  # worker address -> why this load goes on without it

    @property
    def addresses(self) -> set[str]:
        """The workers of its stages."""
        return {stage.address for stage in self.stages}

    @property
    def candidates(self) -> tuple[str, ...]:
        """The workers that may have a part in it."""
        return tuple(address for address in self.order.addresses if address not in self._left_out)

    def is_loading_on(self, address: str) -> bool:
        """Whether a worker is about to load a part of it."""
        return self.phase in LOADING and address in self.addresses

    def address_of(self, program: bytes) -> str:
        """The worker of the stage with *program*; "" when it has no such stage."""
        return next((stage.address for stage in self.stages if stage.program == program), "")

    def held(self) -> dict[str, int]:
        """Worker address -> bytes that it uses for this model, or is going to by the plan."""
        return {address: self.held_on(address) for address in self.addresses}

    def held_on(self, address: str) -> int:
        """Bytes that a worker uses for this model, or is going to by the plan."""
        return sum(self._held[stage.program] for stage in self.stages if stage.address == address)

    # Loading

    @property
    def missing(self) -> tuple[str, ...]:
        """Why workers that were named have no part in it: in the words that their own rows have at this moment."""
        return tuple(map(self._links.why_without, self._absent))

    def define(self, placement: Placement, stages: tuple[Stage, ...], now: float) -> list[Effect]:
        """Begin to load the model as *stages*."""
        self.phase, self.placement, self.stages = Phase.DEFINING, placement, stages
        named = self._links.one_name_each(self.candidates)
        away = [address for address in named if self._links[address].status is not Status.READY]
        self._absent = (*away, *self._left_out)
        self._held = {stage.program: stage.need for stage in stages}
        self._unready, self._defined = {stage.program for stage in stages}, set()
        self.latency, self.speed = [LatencyWindow() for _ in stages], SpeedMeter()
        profiles = (self._links[stage.address].profile for stage in stages)
        hidden_size = self.order.network.hidden_size
        self.costs = tuple(
            stage_cost(stage, profile, hidden_size) for stage, profile in zip(stages, profiles, strict=True)
        )
        self.uploads = {stage.address: Upload() for stage in stages}
        self._load_deadlines = {}
        for address in self.addresses:
            self._got_further(address, now)
        return [self._links[stage.address].send(stage.define) for stage in stages]

    def _got_further(self, address: str, now: float) -> None:
        """Give a worker that loads, and the load, time until the next sign of progress."""
        self._load_ends_at = now + self._load_timeout_s + max(map(self._from_disk_s, self.addresses))
        if self._links[address].remote:
            self._load_deadlines[address] = now + LOAD_STALL_S + self._from_disk_s(address)

    def _from_disk_s(self, address: str) -> float:
        """Seconds that a worker on a slow disk reads what it is not sent."""
        sources = (source for stage in self._stages_on(address) for source in stage.define.sources)
        nbytes = sum(source.nbytes for source in sources) - self.uploads[address].total
        return max(nbytes, 0) / SLOW_DISK_BYTES_PER_S

    def defined(self, address: str, message: Defined, now: float) -> list[Effect]:
        """Queue what the worker misses.

        Raises:
            RemoteProtocolError: it misses what its program does not have, or what it has been asked for already.
        """
        stage = self._stage_of(message.program)
        if self.phase is Phase.DEFINING:
            sources = {source.name: source for source in stage.define.sources}
            if message.program in self._defined:
                raise RemoteProtocolError(f"it accepts program {message.program.hex()} twice")
            self._defined.add(message.program)
            for name in message.missing:
                if (source := sources.pop(name, None)) is None:
                    raise RemoteProtocolError(f"it misses weight {name[:128]!r} twice, or its program has none such")
                self.uploads[address].add(message.program, source)
            self._got_further(address, now)
        return []

    def stored(self, address: str, message: Stored, now: float) -> list[Effect]:
        """Take note of what has arrived.

        Raises:
            RemoteProtocolError: more than was sent.
        """
        if self.phase is not Phase.DEFINING or address not in self.uploads:
            return []
        self.uploads[address].acknowledged(message.received)
        self._got_further(address, now)
        done = sum(upload.done for upload in self.uploads.values())
        return [Progressed(self.order.model, done, sum(upload.total for upload in self.uploads.values()))]

    def chunks(self, address: str, *, busy: bool) -> list[Effect]:
        """The next chunks for *address*; few while steps of any model are in flight."""
        if self.phase is not Phase.DEFINING or address not in self.uploads:
            return []
        epoch, model = self._links[address].epoch, self.order.model
        return [
            SendChunk(address, epoch, model, chunk.program, chunk.source, chunk.offset, chunk.nbytes)
            for chunk in self.uploads[address].next_chunks(busy=busy)
        ]

    def ready(self, message: Ready, now: float) -> list[Effect]:
        """A stage is ready; with the last one a token goes through all of them.

        Raises:
            RemoteProtocolError: it takes more memory than its worker has.
        """
        if self.phase is not Phase.DEFINING or message.program not in self._unready:
            return []
        check_range("nbytes", message.nbytes, 0, self._links[self.address_of(message.program)].memory_nbytes)
        self._held[message.program] = message.nbytes
        address = self.address_of(message.program)
        self._got_further(address, now)
        if not any(stage.program in self._unready - {message.program} for stage in self._stages_on(address)):
            self._load_deadlines.pop(address, None)
        self._unready.discard(message.program)
        if self._unready:
            return []
        self.phase, self._load_ends_at = Phase.WARMING, now + self._load_timeout_s
        hidden_state = np.zeros((1, self.order.network.hidden_size), np.float32)
        return self.run(WARM_UP, WARM_UP.token_ids if len(self.stages) == 1 else hidden_state, now)

    def may_return(self, address: str) -> bool:
        """While it loads: whether the worker at *address*, lost just now, may join again; it may once."""
        first = address not in self._lost_before
        self._lost_before.add(address)
        return first

    def leave_out(self, address: str, why: str) -> None:
        """While it loads: go on without the worker at *address*, if the order allows it, though it may join again."""
        allowed = self.order.missing is Missing.USE_REST
        if allowed and self.phase in LOADING and address in self.order.addresses:
            self._left_out.setdefault(address, why)

    # Stepping

    def run(self, microbatch: Microbatch, tensor: Array, now: float) -> list[Effect]:
        """Send *microbatch* through the stages."""
        if self.phase is not Phase.WARMING:
            self.speed.begin(microbatch, now)
        return self._dispatch(next(self._numbers), InFlight(microbatch, 0, now, 0.0), tensor, now)

    def ran(self, message: Ran, output: Array, now: float) -> list[Effect]:
        """A stage is done with a microbatch: on to the next, or out. What nobody waits for is dropped.

        Raises:
            RemoteProtocolError: the output is not of this step, or a duration is none.
        """
        flight = self.in_flight.get(message.microbatch)
        if flight is None or self.stages[flight.stage].program != message.program:
            return []
        microbatch, stage = flight.microbatch, self.stages[flight.stage]
        check_range("compute_us", message.compute_us, 0, MAX_US)
        check_range("queue_us", message.queue_us, 0, MAX_US)
        if self._links[stage.address].remote:
            check_output(output, stage.rows_out(microbatch), stage.width)
        if microbatch.is_decode and self.phase is not Phase.WARMING:
            self.latency[flight.stage].add((now - flight.sent_at) * 1e6, message.compute_us, message.queue_us)
        flight.times.append(self._time(flight, message, now))
        self._complete(message.microbatch)
        flight.stage += 1
        if flight.stage < len(self.stages) and self.stages[flight.stage].rows_in(microbatch):
            return self._dispatch(message.microbatch, flight, output, now)
        if self.phase is Phase.WARMING:
            return self._loaded()
        self.speed.end(microbatch, now)
        if flight.stage < len(self.stages):  # no logits are wanted, so there is nothing for the head to do
            flight.times.append(StageTime(0, 0.0, None))
            output = np.zeros((0, self.order.network.vocab_size), np.float32)
        return [Computed(self.order.model, microbatch.id, output, tuple(flight.times))]

    def _complete(self, number: int) -> InFlight:
        """Take a microbatch from the stage where it is."""
        flight = self.in_flight.pop(number)
        if (link := self._links.get(self.stages[flight.stage].address)) is not None:
            link.steps.discard(number)
        return flight

    def _time(self, flight: InFlight, ran: Ran, now: float) -> StageTime:
        work_s = min(ran.compute_us / 1e6, now - flight.sent_at)  # a worker may say anything
        rows = self.stages[flight.stage].rows_in(flight.microbatch)
        transfer_s = max(now - flight.sent_at - work_s, 0.0) if flight.only_in_flight else None
        # It was waiting at the worker when that answered the one before: what passed since is its overhead.
        link, cost = self._links[self.stages[flight.stage].address], self.costs[flight.stage]
        waited = flight.sent_at + cost.transfer.seconds(rows) < link.answered_at
        overhead_s = max(now - link.answered_at - work_s, 0.0) if waited else None
        link.answered_at = now
        return StageTime(rows, work_s, transfer_s, overhead_s)

    def _loaded(self) -> list[Effect]:
        self.phase, self._load_ends_at = Phase.LOADED, math.inf
        order, stages = self.order, self._plain_stages()
        return [ModelLoaded(order.model, stages, self.held(), order.kv_pages, self.costs, self.missing)]

    def deadlines(self) -> list[float]:
        """When a worker must have answered a step, or got further with loading."""
        steps = (flight.deadline for flight in self.in_flight.values())
        return [*steps, *self._load_deadlines.values(), self._load_ends_at]

    def timed_out(self, now: float) -> OllamaZmqError | None:
        """What to say of a load that has made no progress for too long; None while there is time."""
        if now <= self._load_ends_at:
            return None
        return CapacityError(
            f"loading {self.order.name} made no progress for {self._load_timeout_s:g} s; set OLLAMA_LOAD_TIMEOUT of the"
            " server higher, or to 0 for no limit"
        )

    def late(self, now: float) -> tuple[str, str] | None:
        """The worker that let a deadline pass, and what to say of it."""
        for address, deadline in self._load_deadlines.items():
            if now > deadline:
                return address, f"worker {address} got no further with loading {self.order.name} in time"
        for flight in self.in_flight.values():
            if now > flight.deadline:
                address = self.stages[flight.stage].address
                waited_s = flight.deadline - flight.sent_at
                return address, f"worker {address} did not answer a step within {waited_s:.0f} s"
        return None

    def _dispatch(self, number: int, flight: InFlight, tensor: Array, now: float) -> list[Effect]:
        """Send a microbatch to its current stage."""
        stage, microbatch = self.stages[flight.stage], flight.microbatch
        link = self._links[stage.address]
        cost, T = self.costs[flight.stage], len(microbatch.token_ids)
        expected_s = cost.work.seconds(T) + cost.transfer.seconds(T)
        limit_s = DEADLINE_S + DEADLINE_FACTOR * expected_s if link.remote else float("inf")
        flight.sent_at, flight.deadline = now, now + limit_s
        flight.only_in_flight = not link.steps
        self.in_flight[number] = flight
        link.steps.add(number)
        message = stage.run_message(number, microbatch, deadline_ms=int(min(limit_s, 86400.0) * 1000))
        return [link.send(message, {"input": tensor})]

    # Failing and ending

    def failed(self, program: bytes, microbatch: int, error: OllamaZmqError) -> list[Effect]:
        """A worker cannot do what it was asked: that ends a load, and one step of a loaded model.

        A failed step counts from the stage where it is; what no step waits for is ignored.
        """
        if self.phase in LOADING:
            return [*self.release(), LoadFailed(self.order.model, error)]
        flight = self.in_flight.get(microbatch)
        if flight is None or self.stages[flight.stage].program != program:
            return []
        flight = self._complete(microbatch)
        self.speed.drop(flight.microbatch)
        return [StepFailed(self.order.model, flight.microbatch.id, error)]

    def lost(self, address: str, detail: str) -> list[Effect]:
        """A stage's worker is gone; in phase JOINING afterwards, the workers that are left shall be joined."""
        error = StageLost(f"{detail}; the next request runs on what is left", worker=address)
        loaded = self.phase is Phase.LOADED
        effects = self.release()
        if loaded:
            return [*effects, ModelLost(self.order.model, error)]
        if self.losses == MAX_LOSSES:
            return [*effects, LoadFailed(self.order.model, error)]
        self.losses += 1
        self.phase = Phase.JOINING
        return effects

    def release(self) -> list[Effect]:
        """Forget the model on every worker; what is in flight is dropped."""
        effects: list[Effect] = []
        for number in list(self.in_flight):
            self._complete(number)
        for stage in self.stages:
            link = self._links.get(stage.address)
            if link is not None and link.status is Status.READY:
                effects.append(link.send(Release(stage.program)))
        self.phase, self.stages, self.placement = Phase.GONE, (), None
        self._unready, self.uploads, self.latency, self._held, self.costs = set(), {}, [], {}, ()
        self._load_deadlines, self._load_ends_at = {}, math.inf
        return effects

    def _plain_stages(self) -> tuple[StageState, ...]:
        return tuple(stage.state for stage in self.stages)

    def check(self) -> None:
        """Assert what must hold between any two events; tests call it.

        Raises:
            AssertionError: it does not.
        """
        programs = {stage.program for stage in self.stages}
        assert bool(self.stages) == (self.phase not in (Phase.JOINING, Phase.GONE))
        assert set(self._held) == programs
        assert self._unready <= programs
        assert bool(self._unready) == (self.phase is Phase.DEFINING)
        assert len(self.latency) == len(self.costs) == len(self.stages)
        assert self.in_flight == {} or self.phase in (Phase.WARMING, Phase.LOADED)
        assert set(self._load_deadlines) <= self.addresses
        assert not self._load_deadlines or self.phase is Phase.DEFINING
        assert self._load_ends_at == math.inf or self.phase in LOADING
        layers = [layer for stage in self.stages for layer in stage.layers]
        assert layers == list(range(self.order.network.n_layers)) if self.stages else layers == []
        for upload in self.uploads.values():
            assert 0 <= upload.done <= upload.sent <= upload.total
        for number, flight in self.in_flight.items():
            assert 0 <= flight.stage < len(self.stages)
            assert number in self._links[self.stages[flight.stage].address].steps
            assert (flight.microbatch is WARM_UP) == (self.phase is Phase.WARMING)

    def _stages_on(self, address: str) -> list[Stage]:
        return [stage for stage in self.stages if stage.address == address]

    def _stage_of(self, program: bytes) -> Stage:
        return next(stage for stage in self.stages if stage.program == program)
