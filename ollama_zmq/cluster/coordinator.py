"""What the broker decides about its workers. Events in, effects out; no sockets, no clocks, no threads.

    Phase      Event                              Effects                                Next phase
    any        load                               Connect each worker                    unchanged
    any        every link READY or given up       Joined; Replacing, Define, if wanted   DEFINING
    any        ... and one was never ready        LoadFailed; what is loaded stays       unchanged
    DEFINING   Got(Defined), weights missing      SendChunk within the credit            DEFINING
    DEFINING   Got(Stored)                        SendChunk, Progressed                  DEFINING
    DEFINING   Got(Ready) of the last stage       Send(Run) of one token                 WARMING
    WARMING    that token came out                Loaded                                 LOADED
    LOADED     run                                Send(Run) to the first stage           LOADED
    LOADED     Got(Ran)                           Send(Run) to the next, or Computed     LOADED
    LOADED     Got(Failed)                        StepFailed                             LOADED
    LOADED     Got(Failed, StageLost)             as when the link is lost               IDLE
    LOADED     a stage's link is lost             ModelLost, Release to the others       IDLE
    loading    Got(Failed)                        LoadFailed, Release to the others      IDLE
    loading    a stage's link is lost             Release to the others, Connect again   IDLE

A worker that has been ready before and is gone when a model is loaded again is left out of the plan; one that never
answered is a mistake in the list and fails the load, naming it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from ollama_zmq.cluster.events import (
    Attached,
    Broke,
    Computed,
    Detached,
    Effect,
    Event,
    Got,
    Joined,
    Loaded,
    LoadFailed,
    ModelLost,
    Progressed,
    Replacing,
    SendChunk,
    StepFailed,
    Tick,
)
from ollama_zmq.cluster.latency import LatencyWindow
from ollama_zmq.cluster.link import JOINING, Link, Status
from ollama_zmq.cluster.placement import Placement, Site, place
from ollama_zmq.cluster.stages import LOCAL, LoadOrder, Stage, demand_of, stages_of
from ollama_zmq.cluster.state import ClusterState, StageState, WorkerState
from ollama_zmq.cluster.uploads import Upload
from ollama_zmq.devices.base import Array
from ollama_zmq.engine.costs import Line
from ollama_zmq.engine.pacing import StageCost, StageTime
from ollama_zmq.engine.requests import Microbatch
from ollama_zmq.errors import (
    OllamaZmqError,
    OutOfDeviceMemory,
    RemoteProtocolError,
    StageLost,
    Unreachable,
    error_class,
)
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.messages import Bye, Defined, Failed, Ran, Ready, Release, Run, Stored

DEADLINE_S = 10.0
DEADLINE_FACTOR = 10.0
MAX_LOSSES = 2  # a load begins again so many times when workers die under it
WARM_UP = Microbatch(-1, np.zeros(1, np.int32), lengths=(1,), positions=(0,), pages=((0,),), rows=(0,))


class Phase(Enum):
    """How far the model is."""

    IDLE = auto()
    DEFINING = auto()
    WARMING = auto()
    LOADED = auto()


@dataclass(slots=True)
class Flight:
    """A microbatch on its way: at which stage, since when, until when, and what the stages before took.

    Attributes:
        alone: no other microbatch was at that worker when it was sent there.
    """

    microbatch: Microbatch
    stage: int
    sent_at: float
    deadline: float
    alone: bool = True
    times: list[StageTime] = field(default_factory=list)


class Coordinator:
    """Joins workers, loads one model over them, and carries microbatches through its stages.

    Attributes:
        links: address -> link, the local device among them.
        wanted: the model whose workers are joining, or None.
        order: the model that is loaded or being loaded, or None.
        stages: of the model that is loaded or being loaded, in pipeline order.
    """

    def __init__(self, broker: str) -> None:
        self.broker = broker
        self.phase = Phase.IDLE
        self.links: dict[str, Link] = {LOCAL: Link(LOCAL, broker, remote=False)}
        self.wanted: LoadOrder | None = None
        self.order: LoadOrder | None = None
        self.stages: tuple[Stage, ...] = ()
        self.placement: Placement | None = None
        self.flights: dict[int, Flight] = {}
        self._joining = False
        self._unready: set[bytes] = set()
        self._uploads: dict[str, Upload] = {}
        self._latency: list[LatencyWindow] = []
        self._epochs = 0
        self._sent = 0
        self._losses = 0  # stages lost during this load

    # What the loop asks for

    def join(self, addresses: tuple[str, ...], now: float) -> list[Effect]:
        """Connect to *addresses* and to nobody else whom no model needs. Ends with ``Joined``."""
        effects = self._leave_all_but(addresses)
        for address in (LOCAL, *addresses):
            link = self.links.setdefault(address, Link(address, self.broker))
            if link.status is not Status.READY and link.status not in JOINING:
                self._epochs += 1
                effects += link.join(self._epochs, now)
        self._joining = True
        return effects + self._settle(now)

    def load(self, order: LoadOrder, now: float) -> list[Effect]:
        """Replace whatever is loaded, once the workers have joined. Ends with ``Loaded`` or ``LoadFailed``."""
        effects = [] if self.phase is Phase.LOADED else self._drop_model()
        self.wanted, self._losses = order, 0
        return effects + self.join(order.addresses, now)

    def unload(self) -> list[Effect]:
        """Forget the model on every worker, and the one that is wanted; what is in flight is dropped."""
        self.wanted = None
        return self._drop_model()

    def run(self, microbatch: Microbatch, tensor: Array, now: float) -> list[Effect]:
        """Send *microbatch* through the stages. Ends with ``Computed``, ``StepFailed`` or ``ModelLost``.

        Args:
            tensor: what the first stage takes: the hidden state float32 [T, D], or the token ids if :attr:`is_whole`.
        """
        self._sent += 1
        return self._fly(self._sent, Flight(microbatch, 0, now, 0.0), tensor, now)

    @property
    def is_whole(self) -> bool:
        """Whether one program, on the local device, holds all of the model."""
        return len(self.stages) == 1

    def leave_all(self) -> list[Effect]:
        """End every lease; the broker is about to stop."""
        return [effect for address in list(self.links) for effect in self._leave(address)]

    # What happens

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Advance by one event and return what the loop must do, in order."""
        match event:
            case Tick():
                return self._tick(now)
            case Attached(address):
                return self._advance(address, Link.attached, now)
            case Detached(address, reason, final):
                return self._advance(address, lambda link: link.detached(reason, final=final, now=now), now)
            case Broke(address, reason):
                return self._advance(address, lambda link: link.broke(reason), now)
            case Got(address, envelope):
                link = self.links.get(address)
                if link is None or envelope.epoch != link.epoch:
                    return []
                return self._on_message(address, event, now)
        raise AssertionError(event)

    def next_deadline(self, now: float) -> float:
        """When the loop must wake up even if nothing arrives."""
        return min([now + (0.1 if self._joining else 1.0), *(flight.deadline for flight in self.flights.values())])

    def _on_message(self, address: str, event: Got, now: float) -> list[Effect]:
        envelope = event.envelope
        message = envelope.message
        try:
            effects = self._advance(address, lambda link: link.receive(message, envelope.seq, now), now)
            match message:
                case Defined():
                    effects += self._on_defined(address, message)
                case Stored():
                    effects += self._on_stored(address, message)
                case Ready():
                    effects += self._on_ready(address, message, now)
                case Ran():
                    effects += self._on_ran(message, envelope.tensors["output"], now)
                case Failed():
                    effects += self._on_failed(address, message, now)
        except RemoteProtocolError as error:
            why = str(error)
            return self._advance(address, lambda link: link.drop(Status.LOST, why), now)
        return effects

    def _advance(self, address: str, change: Callable[[Link], list[Effect]], now: float) -> list[Effect]:
        """Let one link change, then draw the consequences for the load and the model."""
        link = self.links.get(address)
        if link is None:
            return []
        before = link.status
        effects = change(link)
        if link.status in (Status.LOST, Status.REFUSED) and link.status is not before:
            effects += self._lost(address, link.detail, now)
        return effects + self._greet(now) + self._settle(now)

    def _tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for address in list(self.links):
            effects += self._advance(address, lambda link: link.tick(now), now)
        late = next((flight for flight in self.flights.values() if now > flight.deadline), None)
        if late is not None:
            address = self.stages[late.stage].address
            why = f"worker {address} did not answer a step within {late.deadline - late.sent_at:.0f} s"
            effects += self._advance(address, lambda link: link.drop(Status.LOST, why), now)
        return effects

    # Joining and loading

    def _settle(self, now: float) -> list[Effect]:
        """Once no link is joining any more, say so, and plan the model that is wanted."""
        if not self._joining or any(link.status in JOINING for link in self.links.values()):
            return []
        self._joining = False
        order, self.wanted = self.wanted, None
        if order is None:
            return [Joined()]
        try:
            strangers = [self.links[address] for address in order.addresses if not self._usable(address)]
            if strangers:
                raise Unreachable("; ".join(link.detail for link in strangers))
            placement = place(demand_of(order), self._sites(order), self._local_site(order), order.policy)
            stages = stages_of(order, placement)
        except OllamaZmqError as error:
            return [Joined(), LoadFailed(error)]
        return [
            Joined(),
            Replacing(),
            *self._drop_model(),
            *self._define(order, placement, stages),
            *self._leave_all_but(()),
        ]

    def _greet(self, now: float) -> list[Effect]:
        """Greet who waits, one at a time on each host."""
        effects: list[Effect] = []
        for link in self.links.values():
            busy = {other.host for other in self.links.values() if other.status is Status.GREETING}
            if link.status is Status.WAITING and link.host not in busy:
                effects += link.greet(now)
        return effects

    def _usable(self, address: str) -> bool:
        """Whether the load may go on: the worker is ready, or is a known one that died."""
        link = self.links[address]
        return link.status is Status.READY or (link.status is Status.LOST and link.was_ready)

    def _define(self, order: LoadOrder, placement: Placement, stages: tuple[Stage, ...]) -> list[Effect]:
        self.order, self.placement, self.stages = order, placement, stages
        self.phase = Phase.DEFINING
        self._unready = {stage.program for stage in self.stages}
        self._latency = [LatencyWindow() for _ in self.stages]
        self._uploads = {stage.address: Upload() for stage in self.stages}
        return [self.links[stage.address].send(stage.define) for stage in self.stages]

    def _on_defined(self, address: str, message: Defined) -> list[Effect]:
        stage = self._stage_of(message.program)
        if stage is None or self.phase is not Phase.DEFINING:
            return []
        sources = {source.name: source for source in stage.define.sources}
        for name in message.missing:
            if name not in sources:
                raise RemoteProtocolError(f"worker {address} misses weight {name!r}, which its program does not have")
            self._uploads[address].add(message.program, sources[name])
        return list(self._chunks(address))

    def _on_stored(self, address: str, message: Stored) -> list[Effect]:
        upload = self._uploads.get(address)
        if upload is None or self.phase is not Phase.DEFINING:
            return []
        upload.acknowledged(message.received)
        done = sum(upload.done for upload in self._uploads.values())
        total = sum(upload.total for upload in self._uploads.values())
        return [Progressed(done, total), *self._chunks(address)]

    def _chunks(self, address: str) -> Iterator[Effect]:
        epoch = self.links[address].epoch
        for chunk in self._uploads[address].next_chunks(busy=bool(self.flights)):
            yield SendChunk(address, epoch, chunk.program, chunk.source, chunk.offset, chunk.nbytes)

    def _on_ready(self, address: str, message: Ready, now: float) -> list[Effect]:
        self.links[address].resident_bytes = message.resident_bytes
        self._unready.discard(message.program)
        if self.phase is not Phase.DEFINING or self._unready:
            return []
        self.phase = Phase.WARMING
        assert self.order is not None
        hidden_state = np.zeros((1, self.order.network.hidden_size), np.float32)
        return self.run(WARM_UP, WARM_UP.token_ids if self.is_whole else hidden_state, now)

    def _fail_load(self, error: OllamaZmqError) -> list[Effect]:
        return [*self._drop_model(), LoadFailed(error)]

    def _drop_model(self) -> list[Effect]:
        effects: list[Effect] = []
        for stage in self.stages:
            link = self.links.get(stage.address)
            if link is not None and link.status is Status.READY:
                effects.append(link.send(Release(stage.program)))
        self.phase, self.order, self.stages, self.placement = Phase.IDLE, None, (), None
        self._unready, self._uploads, self._latency = set(), {}, []
        self.flights.clear()
        return effects

    # Stepping

    def _fly(self, number: int, flight: Flight, tensor: Array, now: float) -> list[Effect]:
        """Send a microbatch to its current stage."""
        stage, microbatch = self.stages[flight.stage], flight.microbatch
        link = self.links[stage.address]
        limit_s = self._limit_s(stage, link, len(microbatch.token_ids)) if link.remote else float("inf")
        flight.sent_at, flight.deadline = now, now + limit_s
        flight.alone = all(self.stages[other.stage].address != stage.address for other in self.flights.values())
        self.flights[number] = flight
        R = len(microbatch.rows)
        head = stage.part == "head"  # it is given the rows that are wanted, and nothing else
        message = Run(
            program=stage.program,
            microbatch=number,
            lengths=(1,) * R if head else microbatch.lengths,
            positions=(0,) * R if head else microbatch.positions,
            pages=microbatch.pages if stage.define.kv_pages else (),
            rows=tuple(range(R)) if head else microbatch.rows if stage.gives_rows else (),
            deadline_ms=int(min(limit_s, 86400.0) * 1000),
        )
        return [link.send(message, {"input": tensor})]

    def _limit_s(self, stage: Stage, link: Link, T: int) -> float:
        assert link.welcome is not None
        streaming = stage.nbytes / max(link.welcome.decode_bytes_per_s, 1e6)
        multiplying = stage.macs * T / max(link.welcome.prefill_macs_per_s, 1e6)
        moving = 8.0 * T * (self.order.network.hidden_size if self.order else 0) / max(link.bandwidth_bytes_per_s, 1e5)
        return DEADLINE_S + DEADLINE_FACTOR * (streaming + multiplying + moving + link.rtt_s)

    def _on_ran(self, message: Ran, output: Array, now: float) -> list[Effect]:
        flight = self.flights.get(message.microbatch)
        if flight is None or self.stages[flight.stage].program != message.program:
            return []
        decoding = len(flight.microbatch.lengths) == len(flight.microbatch.token_ids)
        if decoding and flight.microbatch is not WARM_UP:
            self._latency[flight.stage].add((now - flight.sent_at) * 1e6, message.compute_us, message.queue_us)
        flight.times.append(self._time(flight, message, now))
        del self.flights[message.microbatch]
        flight.stage += 1
        if flight.stage < len(self.stages) and (flight.microbatch.rows or self.stages[flight.stage].part != "head"):
            return self._fly(message.microbatch, flight, output, now)
        if flight.microbatch is WARM_UP:
            return self._loaded()
        if flight.stage < len(self.stages):  # no logits are wanted, so there is nothing for the head to do
            assert self.order is not None
            flight.times.append(StageTime(0, 0.0, None))
            output = np.zeros((0, self.order.network.vocab_size), np.float32)
        return [Computed(flight.microbatch.id, output, tuple(flight.times))]

    def _time(self, flight: Flight, ran: Ran, now: float) -> StageTime:
        work_s, microbatch = ran.compute_us / 1e6, flight.microbatch
        rows = len(microbatch.rows if self.stages[flight.stage].part == "head" else microbatch.token_ids)
        way_s = max(now - flight.sent_at - work_s, 0.0) if flight.alone else None
        return StageTime(rows, work_s, way_s)

    def _loaded(self) -> list[Effect]:
        assert self.order is not None
        self.phase = Phase.LOADED
        resident = {stage.address: self.links[stage.address].resident_bytes for stage in self.stages}
        states = tuple(stage.state for stage in self.stages)
        costs = tuple(self._cost(stage, self.links[stage.address]) for stage in self.stages)
        return [Loaded(states, resident, self.order.kv_pages, costs)]

    def _cost(self, stage: Stage, link: Link) -> StageCost:
        """What *stage* will cost by what its worker and the link to it were measured at."""
        assert link.welcome is not None
        assert self.order is not None
        fixed_s = stage.nbytes / max(link.welcome.decode_bytes_per_s, 1e6)
        row_s = stage.macs / max(link.welcome.prefill_macs_per_s, 1e6)
        moved_s = 8.0 * self.order.network.hidden_size / max(link.bandwidth_bytes_per_s, 1e5) if link.remote else 0.0
        return StageCost(stage.address, Line(fixed_s, row_s), Line(link.rtt_s, moved_s), stage.part == "head")

    def _on_failed(self, address: str, message: Failed, now: float) -> list[Effect]:
        where = "" if address == LOCAL else f"worker {address}: "
        error = error_class(message.kind)(f"{where}{message.detail}")
        if isinstance(error, StageLost):  # it has nothing of ours any more
            return self._advance(address, lambda link: link.drop(Status.LOST, str(error)), now)
        flight = self.flights.pop(message.microbatch, None)
        if flight is not None and self.phase is Phase.LOADED:
            return [StepFailed(flight.microbatch.id, error)]
        if self.phase in (Phase.DEFINING, Phase.WARMING):
            return self._fail_load(error)
        return []

    # Losing

    def _lost(self, address: str, detail: str, now: float) -> list[Effect]:
        if address not in {stage.address for stage in self.stages}:
            return []
        error = StageLost(f"{detail}; the next request runs on what is left", worker=address)
        loaded, order = self.phase is Phase.LOADED, self.order
        effects = self._drop_model()
        if loaded:
            return [*effects, ModelLost(error)]
        if order is None or self.wanted is not None or self._losses == MAX_LOSSES:
            return [*effects, LoadFailed(error)]
        self._losses += 1
        self.wanted = order
        return [*effects, *self.join(order.addresses, now)]

    def _leave_all_but(self, addresses: tuple[str, ...]) -> list[Effect]:
        """End the lease of every worker that is not in *addresses* and that no model needs."""
        kept = {LOCAL, *addresses, *(stage.address for stage in self.stages)}
        for order in (self.order, self.wanted):
            kept.update(order.addresses if order else ())
        return [effect for address in self.links.keys() - kept for effect in self._leave(address)]

    def _leave(self, address: str) -> list[Effect]:
        link = self.links.pop(address)
        if link.status in (Status.ABSENT, Status.LOST, Status.REFUSED):
            return []
        goodbye: list[Effect] = [link.send(Bye())] if link.status is not Status.CONNECTING else []
        return goodbye + link.drop(Status.ABSENT, "")

    # What can be seen

    def state(self) -> ClusterState:
        """Return what ``/api/cluster`` shows."""
        stages = tuple(self._stage_state(i) for i in range(len(self.stages)))
        workers = tuple(self._worker_state(link) for link in self.links.values())
        notes = self.placement.notes if self.placement else ()
        return ClusterState(VERSION, PROTOCOL, self.order.name if self.order else "", workers, stages, notes)

    def _stage_state(self, i: int) -> StageState:
        plain = self.stages[i].state
        latency = self._latency[i].summary() if i < len(self._latency) else None
        return StageState(plain.worker, plain.part, plain.first_layer, plain.last_layer, latency)

    def _worker_state(self, link: Link) -> WorkerState:
        runs = [s.layers for s in self.stages if s.address == link.address and s.layers]
        known = WorkerState(
            link.address,
            "connecting" if link.status in JOINING else link.status.value,
            link.detail,
            layers=", ".join(f"{r.start}-{r.stop - 1}" for r in runs),
            resident_bytes=link.resident_bytes,
        )
        welcome = link.welcome
        if welcome is None:
            return known
        return WorkerState(
            known.address,
            known.status,
            known.detail,
            version=welcome.package,
            protocol=welcome.protocol,
            host=welcome.host,
            devices=tuple(device.name for device in welcome.devices),
            threads=welcome.threads,
            memory_total=welcome.memory_total,
            memory_budget=welcome.memory_budget,
            resident_bytes=known.resident_bytes,
            decode_bytes_per_s=welcome.decode_bytes_per_s,
            prefill_macs_per_s=welcome.prefill_macs_per_s,
            rtt_us=link.rtt_s * 1e6,
            bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
            layers=known.layers,
        )

    def _sites(self, order: LoadOrder) -> list[Site]:
        ready = [self.links[a] for a in order.addresses if self.links[a].status is Status.READY]
        return [self._site(link, 0) for link in ready]

    def _local_site(self, order: LoadOrder) -> Site:
        link = self.links[LOCAL]
        if link.status is not Status.READY:
            raise OutOfDeviceMemory(f"this machine's own device is not ready: {link.detail or link.status.value}")
        return self._site(link, order.network.head_nbytes())

    @staticmethod
    def _site(link: Link, taken: int) -> Site:
        assert link.welcome is not None
        return Site(
            link.address, link.welcome.memory_budget - taken, max(link.welcome.decode_bytes_per_s, 1.0), link.rtt_s
        )

    def _stage_of(self, program: bytes) -> Stage | None:
        return next((stage for stage in self.stages if stage.program == program), None)
