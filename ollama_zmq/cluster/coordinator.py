"""What the broker decides about its workers and models. Sans-IO: events in, effects out.

    What happens                                Effects
    join                                        Connect each worker; Joined when the gathering is over
    load                                        Connect each worker of the order
    the gathering of an order is over           Define its stages, and Replaced of the model it takes the place of
    ... and a worker is missing                 the same over the rest, or LoadFailed, as the order says
    ... and it fits when others are evicted     LoadFailed with MemoryInUse, which names them
    ... and it does not fit                     LoadFailed, which names who is missing
    a message about a program                   what its pipeline makes of it
    Got(Failed), StageLost                      as when the worker is lost
    Unsendable                                  as when the worker says that it cannot do it
    a worker is lost                            every model with a stage on it is lost or, while it loads, begun again,
                                                without that worker if it was lost under it before
    a load makes no progress on a worker        as when the worker is lost; begun again without it, as the order says
    ... nor anywhere else for load_timeout_s    LoadFailed
    unload                                      Release its programs
    LEASE_IDLE_S without a model on a worker    Bye

A :class:`Link` is one worker's connection, a :class:`Pipeline` one model over its stages; each has a table of states of
its own. Every model goes on whatever happens to workers that it does not use.

Which workers a load waits for, and when it goes on without the others, is decided in
:mod:`ollama_zmq.cluster.membership`. Two addresses of one worker are one worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from itertools import count
from types import MappingProxyType

from ollama_zmq.cluster.answers import cleaned, error_of
from ollama_zmq.cluster.events import (
    Attached,
    ConnectionFailed,
    ConnectionLost,
    Effect,
    Event,
    Got,
    Joined,
    LoadFailed,
    Replaced,
    Tick,
    Unsendable,
)
from ollama_zmq.cluster.link import ENDED, Link, Status
from ollama_zmq.cluster.links import Links
from ollama_zmq.cluster.load_plan import plan_at_once
from ollama_zmq.cluster.membership import Gathering, Gatherings
from ollama_zmq.cluster.pipeline import Phase, Pipeline
from ollama_zmq.cluster.snapshot import ClusterSnapshot, snapshot_of
from ollama_zmq.cluster.stages import LOCAL, LoadOrder, Missing
from ollama_zmq.cluster.state import ClusterState, UseState
from ollama_zmq.cluster.view import cluster_state
from ollama_zmq.devices.base import Array
from ollama_zmq.engine.requests import Microbatch
from ollama_zmq.errors import (
    MemoryInUse,
    OllamaZmqError,
    OutOfDeviceMemory,
    RemoteProtocolError,
    StageLost,
)
from ollama_zmq.wire.messages import Defined, Failed, Ran, Ready, Stored, Welcome


class Coordinator:
    """Joins workers, loads models over them, and carries microbatches through their stages.

    Args:
        cores: of this machine, which its own device and workers on it share; 0 when that is not known.
        load_timeout_s: how long a load may make no progress.

    Attributes:
        links: address -> link, the local device among them.
        pipelines: model number -> the model, loaded or being loaded, in the order of the loads.
    """

    def __init__(self, broker: str, cores: int = 0, load_timeout_s: float = math.inf) -> None:
        self._load_timeout_s = load_timeout_s
        self.links = Links(broker, cores)
        self.pipelines: dict[int, Pipeline] = {}
        self._programs: dict[bytes, Pipeline] = {}
        self._gatherings = Gatherings()
        self._numbers = count(1)

    # What the loop asks for

    def join(self, addresses: tuple[str, ...], now: float, foreign: Collection[str] = ()) -> list[Effect]:
        """Connect to *addresses* and to nobody else whom no model needs. Ends with ``Joined``."""
        ours = self.links.one_name_each(addresses)
        effects = self.leave_unused(ours) + self.links.join(ours, now, foreign)
        self._gatherings.look(Gathering(addresses, ours, Missing.USE_REST, now, now))
        return effects + self._settle(now)

    def load(self, order: LoadOrder, now: float) -> list[Effect]:
        """Load a model beside the others, once its workers have joined. Ends with ``ModelLoaded`` or ``LoadFailed``."""
        order = replace(order, addresses=self.links.one_name_each(order.addresses))
        pipeline = self.pipelines[order.model] = Pipeline(order, self.links, self._numbers, self._load_timeout_s)
        return self._gather(pipeline, now) + self._settle(now)

    def unload(self, model: int) -> list[Effect]:
        """Forget a model on every worker, however far it is; what is in flight is dropped."""
        pipeline = self.pipelines.get(model)
        return [] if pipeline is None else self._ended(pipeline, pipeline.release())

    def run(self, model: int, microbatch: Microbatch, tensor: Array, now: float) -> list[Effect]:
        """Send *microbatch* through the model's stages. Ends with ``Computed``, ``StepFailed`` or ``ModelLost``.

        Args:
            tensor: what the first stage takes: the hidden state float32 [T, D], or the token ids if the model is whole.
        """
        return self.pipelines[model].run(microbatch, tensor, now)

    @property
    def addresses(self) -> set[str]:
        """Every address that may have to be connected to: of a link, or in the order of a model."""
        return {*self.links}.union(*(pipeline.order.addresses for pipeline in self.pipelines.values()))

    def locate(self, found: Mapping[str, Iterable[str]]) -> None:
        """Take note of the endpoints of addresses, before they are named; those that nobody uses are forgotten."""
        self.links.locate(found, self.addresses)

    @property
    def n_in_flight(self) -> int:
        """Microbatches on their way, of all models."""
        return sum(len(pipeline.in_flight) for pipeline in self.pipelines.values())

    def leave_unused(self, addresses: tuple[str, ...] = ()) -> list[Effect]:
        """End the lease of every worker that is not in *addresses* and that no model needs."""
        kept = {LOCAL, *addresses, *self._needed()}
        for pipeline in self.pipelines.values():
            kept |= set(pipeline.order.addresses)
        return self.links.leave_all_but(kept)

    def leave_all(self) -> list[Effect]:
        """End every lease and forget every model; the broker is about to stop."""
        self.pipelines, self._programs, self._gatherings = {}, {}, Gatherings()
        return self.links.leave_all_but(())

    # What happens

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Advance by one event and return what the loop must do, in order. What an older connection did is nothing."""
        if isinstance(event, Tick):
            return self._tick(now)
        link = self.links.get(event.address)
        if link is None or link.epoch != event.epoch:
            return []
        match event:
            case Got():
                return self._on_message(event, now)
            case Attached(address):
                return self._advance(address, lambda link: link.attached(now), now)
            case ConnectionFailed(address, _, reason, final):
                return self._advance(address, lambda link: link.connection_failed(reason, final=final, now=now), now)
            case ConnectionLost(address, _, reason):
                return self._advance(address, lambda link: link.connection_lost(reason), now)
            case Unsendable(program=program, microbatch=microbatch, error=error):
                pipeline = self._programs.get(program)
                return [] if pipeline is None else self._ended(pipeline, pipeline.failed(program, microbatch, error))

    def next_deadline(self, now: float) -> float:
        """When the loop must wake up even if nothing arrives."""
        deadlines = [deadline for pipeline in self.pipelines.values() for deadline in pipeline.deadlines()]
        return min([now + (0.1 if self.links.some_join else 1.0), *deadlines])

    def _on_message(self, event: Got, now: float) -> list[Effect]:
        address, link = event.address, self.links[event.address]
        try:
            link.count(event.envelope.seq)
            message = cleaned(event.envelope.message)
            if isinstance(message, Failed):
                return self._on_failed(address, message, now)
            if isinstance(message, Ran | Ready | Defined | Stored):
                pipeline = self._pipeline_of(message.program, link)
                return [] if pipeline is None else self._on_program(pipeline, address, message, event, now)
            gone = self._known_elsewhere(address, message, now) if isinstance(message, Welcome) else []
            return gone + self._advance(address, lambda link: link.receive(message, event.envelope.tensors, now), now)
        except RemoteProtocolError as error:
            why = f"worker {address} broke the protocol: {error}"
            for pipeline in self.pipelines.values():
                pipeline.leave_out(address, why)
            return self._drop(address, why, now)

    def _known_elsewhere(self, address: str, welcome: Welcome, now: float) -> list[Effect]:
        """Note the id of a worker; a connection to it under another name is over, for it has one at a time."""
        if not welcome.id:
            return []
        self.links.identify(address, welcome.id)
        others = [link.address for link in self.links.others_of(address)]
        return [effect for other in others for effect in self._drop(other, f"worker {other} is {address} now", now)]

    def _pipeline_of(self, program: bytes, link: Link) -> Pipeline | None:
        """The model that has *program* as a stage on the worker of *link*; None when that is over.

        Raises:
            RemoteProtocolError: that worker was never sent this program.
        """
        if program not in link.defined:
            raise RemoteProtocolError(f"program {program.hex()[:64]} was not sent to it")
        return self._programs.get(program)  # no program is sent to two workers: see the names in stages.py

    def _on_program(
        self, pipeline: Pipeline, address: str, message: Ran | Ready | Defined | Stored, event: Got, now: float
    ) -> list[Effect]:
        match message:
            case Ran():
                return pipeline.ran(message, event.envelope.tensors["output"], now)
            case Ready():
                return pipeline.ready(message, now)
            case Defined():
                pipeline.defined(address, message, now)
            case Stored():
                pipeline.stored(address, message, now)
        return pipeline.chunks(address, busy=self.n_in_flight > 0)

    def _on_failed(self, address: str, message: Failed, now: float) -> list[Effect]:
        where = "" if address == LOCAL else f"worker {address}: "
        error = error_of(message, where)
        if isinstance(error, StageLost):  # it has nothing of ours any more
            return self._drop(address, str(error), now)
        if message.program:
            pipeline = self._pipeline_of(message.program, self.links[address])
            if pipeline is None:
                return []
            if isinstance(error, OutOfDeviceMemory) and pipeline.is_loading_on(address):
                error = self._memory_error(pipeline.order, address, error)
            return self._ended(pipeline, pipeline.failed(message.program, message.microbatch, error))
        concerned = [pipeline for pipeline in self.pipelines.values() if pipeline.is_loading_on(address)]
        return [effect for each in concerned for effect in self._ended(each, each.failed(b"", -1, error))]

    def _tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for address in list(self.links):
            effects += self._advance(address, lambda link: link.tick(now), now)
        for pipeline in list(self.pipelines.values()):
            if (error := pipeline.timed_out(now)) is not None:
                effects += self._ended(pipeline, pipeline.failed(b"", -1, error))
            elif (late := pipeline.late(now)) is not None:
                pipeline.leave_out(*late)
                effects += self._drop(*late, now)
        for gathering in self._gatherings.to_retry(self.links, now):
            effects += self.links.join(gathering.ours, now)
        return effects + self._settle(now) + self.links.leave_idle(self._needed(), now)

    def _needed(self) -> set[str]:
        """The workers that a model is on, or that one waits for."""
        return self._gatherings.addresses.union(*(pipeline.addresses for pipeline in self.pipelines.values()))

    # Joining and losing workers

    def _advance(self, address: str, change: Callable[[Link], list[Effect]], now: float) -> list[Effect]:
        """Let one link change, then draw the consequences for the others and for the models."""
        link = self.links.get(address)
        if link is None:
            return []
        before = link.status
        effects = change(link)
        if link.status is before:
            return effects
        if link.status in ENDED:
            effects += self._lost(address, link.detail, now)
        return effects + self.links.start_handshakes(now) + self._settle(now)

    def _drop(self, address: str, why: str, now: float) -> list[Effect]:
        return self._advance(address, lambda link: link.drop(Status.LOST, why), now)

    def _lost(self, address: str, detail: str, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for pipeline in list(self.pipelines.values()):
            if address in pipeline.addresses:
                effects += self._ended(pipeline, pipeline.lost(address, detail))
                if pipeline.phase is Phase.JOINING:
                    effects += self._gather(pipeline, now)
        return effects

    def _gather(self, pipeline: Pipeline, now: float) -> list[Effect]:
        """Begin to wait for the workers of a load."""
        assert pipeline.loading is not None
        order, ours = pipeline.order, pipeline.loading.candidates
        self._gatherings.load(order.model, Gathering(order.addresses, ours, order.missing, now, now))
        return self.links.join(ours, now, order.foreign)

    def _settle(self, now: float) -> list[Effect]:
        """Tell of joins that are over, and plan the models that wait for no worker any more."""
        looks = self._gatherings.looks_over(self.links, now)
        effects: list[Effect] = [Joined(gathering.addresses) for gathering in looks]
        for model in self._gatherings.take_loads(self.links, now):
            effects += self._begin(self.pipelines[model], now)
        # Only now, so that a load that begins leaves no worker of a look whose Joined is still to be read.
        self._gatherings.ended(looks)
        return effects

    # Loading

    def _begin(self, pipeline: Pipeline, now: float) -> list[Effect]:
        """Plan a model whose workers have joined, and send its programs."""
        order, loading = pipeline.order, pipeline.loading
        assert loading is not None
        try:
            snapshot = self.snapshot(order.model, loading.candidates)
            missing = (*snapshot.missing, *map(self.links.why_without, loading.left_out))
            plan = plan_at_once(order, replace(snapshot, missing=missing), loading.restarts)
        except OllamaZmqError as error:
            del self.pipelines[order.model]
            return [LoadFailed(order.model, error)]
        effects: list[Effect] = []
        if order.replaces in self.pipelines:
            effects += [Replaced(order.replaces), *self.unload(order.replaces)]
        pipeline.order = plan.order
        effects += pipeline.define(plan.placement, plan.stages, now)
        self._programs.update({stage.program: pipeline for stage in plan.stages})
        return effects + self.leave_unused()

    def _memory_error(self, order: LoadOrder, address: str, error: OutOfDeviceMemory) -> OutOfDeviceMemory:
        """*error* of a worker that has less memory than was planned with; others may have to go there first."""
        others = (model for model in (*order.idle, *order.busy) if model in self.pipelines)
        there = frozenset(model for model in others if self.pipelines[model].held_on(address))
        return MemoryInUse(str(error), models=there) if there else error

    def snapshot(self, model: int, addresses: Iterable[str]) -> ClusterSnapshot:
        """What the workers at *addresses* have for *model*, once they have joined or been given up.

        Raises:
            StageLost: this machine's own device is not ready.
        """
        others = {number: pipeline for number, pipeline in self.pipelines.items() if number != model}
        return snapshot_of(self.links, addresses, others)

    def _ended(self, pipeline: Pipeline, effects: list[Effect]) -> list[Effect]:
        """*effects* of what happened to *pipeline*, which is forgotten if that was its end."""
        if not pipeline.stages:
            self._programs = {program: other for program, other in self._programs.items() if other is not pipeline}
        if pipeline.phase is Phase.GONE:
            del self.pipelines[pipeline.order.model]
            self._gatherings.forget(pipeline.order.model)
        return effects

    def check(self) -> None:
        """Assert what must hold between any two events; tests call it.

        Raises:
            AssertionError: it does not.
        """
        for model, pipeline in self.pipelines.items():
            assert model == pipeline.order.model
            assert pipeline.phase is not Phase.GONE
            assert (model in self._gatherings.models) == (pipeline.phase is Phase.JOINING)
            assert pipeline.addresses <= {
                address for address in self.links if self.links[address].status is Status.READY
            }
            pipeline.check()
        assert set(self._gatherings.models) <= self.pipelines.keys()
        assert self._gatherings.addresses <= self.links.keys()
        programs = {stage.program: pipeline for pipeline in self.pipelines.values() for stage in pipeline.stages}
        assert self._programs == programs
        numbers = [number for pipeline in self.pipelines.values() for number in pipeline.in_flight]
        assert len(numbers) == len(set(numbers))
        steps = {number for link in self.links.values() for number in link.steps}
        assert steps == set(numbers)
        for address, link in self.links.items():
            assert address == link.address
            assert (link.welcome is not None) or link.status is not Status.READY
        epochs = [link.epoch for link in self.links.values() if link.status is not Status.ABSENT]
        assert len(epochs) == len(set(epochs))

    def state(
        self, use: Mapping[int, UseState] = MappingProxyType({}), listed: Mapping[str, str] = MappingProxyType({})
    ) -> ClusterState:
        """Return what ``/api/cluster`` shows: see :func:`ollama_zmq.cluster.view.cluster_state`."""
        return cluster_state(self.links, self.pipelines, use, listed)
