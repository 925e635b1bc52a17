"""Pipeline parallelism of one model: its stages are defined, warmed up, run. It knows nothing of other models.

A state machine (sans-IO): events in, effects out.

Phase      What happens                       Effects                                Next phase
JOINING    define, once the workers joined    Send(Define) to every stage            DEFINING
DEFINING   Defined, weights missing           SendChunk within the credit            DEFINING
DEFINING   Stored                             SendChunk within the credit            DEFINING
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

What a load holds until it ends, its deadlines among that, is kept in :mod:`ollama_zmq.cluster.loading`. A step has a
deadline for every worker but the local device: ``DEADLINE_S`` and ten times what it is expected to take, ten minutes at
most. A worker that lets one pass is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from ollama_zmq.cluster.answers import MAX_US, check_output, check_range
from ollama_zmq.cluster.events import Computed, Effect, LoadFailed, ModelLoaded, ModelLost, SendChunk, StepFailed
from ollama_zmq.cluster.link import Status
from ollama_zmq.cluster.links import Links
from ollama_zmq.cluster.loading import Loading
from ollama_zmq.cluster.placement import Placement
from ollama_zmq.cluster.speeds import LatencyWindow, SpeedMeter, stage_cost
from ollama_zmq.cluster.stages import LoadOrder, Stage
from ollama_zmq.cluster.uploads import Upload
from ollama_zmq.devices.base import Array
from ollama_zmq.engine.pacing import StageCost, StageTime
from ollama_zmq.engine.requests import Microbatch
from ollama_zmq.errors import OllamaZmqError, StageLost
from ollama_zmq.wire.messages import Defined, Ran, Ready, Release, Stored

DEADLINE_S = 10.0
DEADLINE_FACTOR = 10.0
LAST_DEADLINE_S = 600.0  # what is expected rests on what the worker says of its speed
MAX_RESTARTS = 2  # a load begins again so many times when workers die under it
WARM_UP = Microbatch(-1, np.zeros(1, np.int32), lengths=(1,), positions=(0,), pages=((0,),), rows=(0,))


class Phase(Enum):
    """How far a model is. The values are shown to people."""

    JOINING = "joining"
    DEFINING = "loading"
    WARMING = "warming up"
    LOADED = "loaded"
    GONE = "gone"


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
        loading: until it is loaded or given up.
        stages: in pipeline order; none while its workers join.
        in_flight: microbatch number -> where it is.
        uploads: worker address -> what it must be sent.
        latency, costs: of each stage, measured and predicted; speed: of the model, measured.
    """

    def __init__(
        self, order: LoadOrder, links: Links, numbers: Iterator[int], load_timeout_s: float = math.inf
    ) -> None:
        self.order = order
        self.phase = Phase.JOINING
        self.loading: Loading | None = Loading(order, links, load_timeout_s)
        self.stages: tuple[Stage, ...] = ()
        self.placement: Placement | None = None
        self.in_flight: dict[int, InFlight] = {}
        self.uploads: dict[str, Upload] = {}
        self.latency: list[LatencyWindow] = []
        self.speed = SpeedMeter()
        self.costs: tuple[StageCost, ...] = ()
        self._links = links
        self._numbers = numbers
        self._held: dict[bytes, int] = {}  # program -> bytes, by the plan until its worker has counted them
        self._absent: tuple[str, ...] = ()  # the workers of the order that were not there when it was planned

    @property
    def addresses(self) -> set[str]:
        """The workers of its stages."""
        return {stage.address for stage in self.stages}

    def is_loading_on(self, address: str) -> bool:
        """Whether a worker is about to load a part of it."""
        return self.loading is not None and address in self.addresses

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
        loading = self.loading
        assert loading is not None
        self.phase, self.placement, self.stages = Phase.DEFINING, placement, stages
        named = self._links.one_name_each(loading.candidates)
        away = [address for address in named if self._links[address].status is not Status.READY]
        self._absent = (*away, *loading.left_out)
        self._held = {stage.program: stage.need for stage in stages}
        self.latency, self.speed = [LatencyWindow() for _ in stages], SpeedMeter()
        profiles = (self._links[stage.address].profile for stage in stages)
        hidden_size = self.order.network.hidden_size
        self.costs = tuple(
            stage_cost(stage, profile, hidden_size) for stage, profile in zip(stages, profiles, strict=True)
        )
        loading.begin(stages, now)
        self.uploads = loading.uploads
        return [self._links[stage.address].send(stage.define) for stage in stages]

    def defined(self, address: str, message: Defined, now: float) -> None:
        """Queue what the worker misses.

        Raises:
            RemoteProtocolError: it misses what its program does not have, or what it has been asked for already.
        """
        if self.loading is not None:
            self.loading.defined(address, message, now)

    def stored(self, address: str, message: Stored, now: float) -> None:
        """Take note of what has arrived.

        Raises:
            RemoteProtocolError: more than was sent.
        """
        if self.loading is not None:
            self.loading.stored(address, message, now)

    def leave_out(self, address: str, why: str) -> None:
        """While it loads: go on without the worker at *address*, if the order allows it, though it may join again."""
        if self.loading is not None:
            self.loading.leave_out(address, why)

    def chunks(self, address: str, *, busy: bool) -> list[Effect]:
        """The next chunks for *address*; few while steps of any model are in flight."""
        if self.loading is None:
            return []
        epoch, model = self._links[address].epoch, self.order.model
        return [
            SendChunk(address, epoch, model, chunk.program, chunk.source, chunk.offset, chunk.nbytes)
            for chunk in self.loading.next_chunks(address, busy=busy)
        ]

    def ready(self, message: Ready, now: float) -> list[Effect]:
        """A stage is ready; with the last one a token goes through all of them.

        Raises:
            RemoteProtocolError: it takes more memory than its worker has.
        """
        loading = self.loading
        if loading is None or not loading.is_unready(message.program):
            return []
        address = self.address_of(message.program)
        check_range("nbytes", message.nbytes, 0, self._links[address].memory_nbytes)
        self._held[message.program] = message.nbytes
        loading.ready(address, message.program, now)
        if not loading.is_ready:
            return []
        self.phase = Phase.WARMING
        hidden_state = np.zeros((1, self.order.network.hidden_size), np.float32)
        return self.run(WARM_UP, WARM_UP.token_ids if len(self.stages) == 1 else hidden_state, now)

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
        self.phase, self.loading = Phase.LOADED, None
        order, stages = self.order, tuple(stage.state for stage in self.stages)
        return [ModelLoaded(order.model, stages, self.held(), order.kv_pages, self.costs, self.missing)]

    def deadlines(self) -> list[float]:
        """When a worker must have answered a step, or got further with loading."""
        steps = [flight.deadline for flight in self.in_flight.values()]
        return steps + (self.loading.deadlines() if self.loading is not None else [])

    def timed_out(self, now: float) -> OllamaZmqError | None:
        """What to say of a load that has made no progress for too long; None while there is time."""
        return self.loading.timed_out(now) if self.loading is not None else None

    def late(self, now: float) -> tuple[str, str] | None:
        """The worker that let a deadline pass, and what to say of it."""
        if self.loading is not None and (late := self.loading.late(now)) is not None:
            return late
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
        limit_s = min(DEADLINE_S + DEADLINE_FACTOR * expected_s, LAST_DEADLINE_S) if link.remote else math.inf
        flight.sent_at, flight.deadline = now, now + limit_s
        flight.only_in_flight = not link.steps
        self.in_flight[number] = flight
        link.steps.add(number)
        return [link.send(stage.run_message(number, microbatch), {"input": tensor})]

    # Failing and ending

    def failed(self, program: bytes, microbatch: int, error: OllamaZmqError) -> list[Effect]:
        """A worker cannot do what it was asked: that ends a load, and one step of a loaded model.

        A failed step counts from the stage where it is; what no step waits for is ignored.
        """
        if self.loading is not None:
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
        loading, effects = self.loading, self.release()
        if loading is None:
            return [*effects, ModelLost(self.order.model, error)]
        loading.lost(address)
        if loading.restarts > MAX_RESTARTS:
            return [*effects, LoadFailed(self.order.model, error)]
        self.phase, self.loading = Phase.JOINING, loading
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
        self.phase, self.loading, self.stages, self.placement = Phase.GONE, None, (), None
        self.uploads, self.latency, self._held, self.costs = {}, [], {}, ()
        return effects

    def check(self) -> None:
        """Assert what must hold between any two events; tests call it.

        Raises:
            AssertionError: it does not.
        """
        programs = {stage.program for stage in self.stages}
        assert bool(self.stages) == (self.phase not in (Phase.JOINING, Phase.GONE))
        assert set(self._held) == programs
        assert (self.loading is None) == (self.phase in (Phase.LOADED, Phase.GONE))
        if self.loading is not None:
            self.loading.check(self.stages)
            assert self.loading.is_ready == (self.phase is not Phase.DEFINING)
        assert len(self.latency) == len(self.costs) == len(self.stages)
        assert self.in_flight == {} or self.phase in (Phase.WARMING, Phase.LOADED)
        layers = [layer for stage in self.stages for layer in stage.layers]
        assert layers == list(range(self.order.network.n_layers)) if self.stages else layers == []
        for number, flight in self.in_flight.items():
            assert 0 <= flight.stage < len(self.stages)
            assert number in self._links[self.stages[flight.stage].address].steps
            assert (flight.microbatch is WARM_UP) == (self.phase is Phase.WARMING)
