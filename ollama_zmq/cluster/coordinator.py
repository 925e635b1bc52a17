"""What the broker decides about its workers and models. Sans-IO: events in, effects out.

    What happens                                Effects
    join                                        Connect each worker; Joined when all have joined or been given up
    load                                        Connect each worker of the order
    every worker of an order joined or given up Define its stages, and Replaced of the model it takes the place of
    ... and one was never ready                 LoadFailed
    ... and it fits when others are evicted     LoadFailed with MemoryInUse, which names them
    ... and it does not fit                     LoadFailed
    a message about a program                   what its pipeline makes of it
    Got(Failed), StageLost                      as when the worker is lost
    a worker is lost                            every model with a stage on it is lost or, while it loads, begun again
    unload                                      Release its programs

A :class:`Link` is one worker's connection, a :class:`Pipeline` one model over its stages; each has a table of states of
its own. Every model goes on whatever happens to workers that it does not use.

A worker that has been ready before and is gone when a model is loaded again is left out of the plan; one that never
answered is a mistake in the list and fails the load, naming it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from types import MappingProxyType

from ollama_zmq.cluster.answers import cleaned
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
)
from ollama_zmq.cluster.link import Link, Status
from ollama_zmq.cluster.links import ENDED, Links
from ollama_zmq.cluster.load_plan import ClusterSnapshot, LoadPlan, plan_load
from ollama_zmq.cluster.pipeline import Phase, Pipeline
from ollama_zmq.cluster.stages import LOCAL, LoadOrder
from ollama_zmq.cluster.state import NO_USE, ClusterState, UseState, WorkerState
from ollama_zmq.devices.base import Array
from ollama_zmq.engine.requests import Microbatch
from ollama_zmq.errors import (
    MemoryInUse,
    OllamaZmqError,
    OutOfDeviceMemory,
    RemoteProtocolError,
    StageLost,
    Unreachable,
    error_class,
)
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.messages import Defined, Failed, Ran, Ready, Stored


class Coordinator:
    """Joins workers, loads models over them, and carries microbatches through their stages.

    Args:
        cores: of this machine, which its own device and workers on it share; 0 when that is not known.

    Attributes:
        links: address -> link, the local device among them.
        pipelines: model number -> the model, loaded or being loaded, in the order of the loads.
    """

    def __init__(self, broker: str, cores: int = 0) -> None:
        self.links = Links(broker, cores)
        self.pipelines: dict[int, Pipeline] = {}
        self._programs: dict[bytes, Pipeline] = {}
        self._joins: list[tuple[str, ...]] = []
        self._numbers = count(1)

    # What the loop asks for

    def join(self, addresses: tuple[str, ...], now: float) -> list[Effect]:
        """Connect to *addresses* and to nobody else whom no model needs. Ends with ``Joined``."""
        effects = self.leave_unused(addresses) + self.links.join(addresses, now)
        self._joins.append(addresses)
        return effects + self._settle(now)

    def load(self, order: LoadOrder, now: float) -> list[Effect]:
        """Load a model beside the others, once its workers have joined. Ends with ``ModelLoaded`` or ``LoadFailed``."""
        self.pipelines[order.model] = Pipeline(order, self.links, self._numbers)
        return self.links.join(order.addresses, now) + self._settle(now)

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
    def n_in_flight(self) -> int:
        """Microbatches on their way, of all models."""
        return sum(len(pipeline.in_flight) for pipeline in self.pipelines.values())

    def leave_unused(self, addresses: tuple[str, ...] = ()) -> list[Effect]:
        """End the lease of every worker that is not in *addresses* and that no model needs."""
        kept = {LOCAL, *addresses, *(address for joining in self._joins for address in joining)}
        for pipeline in self.pipelines.values():
            kept |= {*pipeline.addresses, *pipeline.order.addresses}
        return self.links.leave_all_but(kept)

    def leave_all(self) -> list[Effect]:
        """End every lease; the broker is about to stop."""
        return self.links.leave_all_but(())

    # What happens

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Advance by one event and return what the loop must do, in order."""
        match event:
            case Got(address, envelope):
                link = self.links.get(address)
                return [] if link is None or envelope.epoch != link.epoch else self._on_message(event, now)
            case Tick():
                return self._tick(now)
            case Attached(address):
                return self._advance(address, Link.attached, now)
            case ConnectionFailed(address, reason, final):
                return self._advance(address, lambda link: link.connection_failed(reason, final=final, now=now), now)
            case ConnectionLost(address, reason):
                return self._advance(address, lambda link: link.connection_lost(reason), now)
        raise AssertionError(event)

    def next_deadline(self, now: float) -> float:
        """When the loop must wake up even if nothing arrives."""
        deadlines = [flight.deadline for pipeline in self.pipelines.values() for flight in pipeline.in_flight.values()]
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
            return self._advance(address, lambda link: link.receive(message, now), now)
        except RemoteProtocolError as error:
            return self._drop(address, f"worker {address} broke the protocol: {error}", now)

    def _pipeline_of(self, program: bytes, link: Link) -> Pipeline | None:
        """The model that has *program* as a stage on the worker of *link*; None when that is over.

        Raises:
            RemoteProtocolError: that worker was never sent this program.
        """
        if program not in link.defined:
            raise RemoteProtocolError(f"program {program.hex()[:64]} was not sent to it")
        pipeline = self._programs.get(program)
        return pipeline if pipeline is not None and pipeline.address_of(program) == link.address else None

    def _on_program(
        self, pipeline: Pipeline, address: str, message: Ran | Ready | Defined | Stored, event: Got, now: float
    ) -> list[Effect]:
        match message:
            case Ran():
                return pipeline.ran(message, event.envelope.tensors["output"], now)
            case Ready():
                return pipeline.ready(message, now)
            case Defined():
                return pipeline.defined(address, message) + self._chunks(pipeline, address)
            case Stored():
                return pipeline.stored(address, message) + self._chunks(pipeline, address)

    def _chunks(self, pipeline: Pipeline, address: str) -> list[Effect]:
        return pipeline.chunks(address, busy=self.n_in_flight > 0)

    def _on_failed(self, address: str, message: Failed, now: float) -> list[Effect]:
        where = "" if address == LOCAL else f"worker {address}: "
        error = error_class(message.kind)(f"{where}{message.detail}")
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
            if (late := pipeline.late(now)) is not None:
                effects += self._drop(*late, now)
        return effects

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
                    effects += self.links.join(pipeline.order.addresses, now)
        return effects

    def _settle(self, now: float) -> list[Effect]:
        """Tell of joins that are over, and plan the models whose workers have all joined or been given up."""
        over = [addresses for addresses in self._joins if not self.links.are_joining(addresses)]
        self._joins = [addresses for addresses in self._joins if addresses not in over]
        effects: list[Effect] = [Joined(addresses) for addresses in over]
        for pipeline in list(self.pipelines.values()):
            if pipeline.phase is Phase.JOINING and not self.links.are_joining(pipeline.order.addresses):
                effects += self._begin(pipeline)
        return effects

    # Loading

    def _begin(self, pipeline: Pipeline) -> list[Effect]:
        """Plan a model whose workers have joined, and send its programs."""
        order = pipeline.order
        try:
            plan = self._plan(order)
        except OllamaZmqError as error:
            del self.pipelines[order.model]
            return [LoadFailed(order.model, error)]
        effects: list[Effect] = []
        if order.replaces in self.pipelines:
            effects += [Replaced(order.replaces), *self.unload(order.replaces)]
        pipeline.order = plan.order
        effects += pipeline.define(plan.placement, plan.stages)
        self._programs.update({stage.program: pipeline for stage in plan.stages})
        return effects + self.leave_unused()

    def _plan(self, order: LoadOrder) -> LoadPlan:
        """Where *order* goes, beside the models that are loaded.

        Raises:
            Unreachable: a worker was never ready.
            MemoryInUse: other models must go first.
            OutOfDeviceMemory: it does not fit.
        """
        never_ready = [self.links[address] for address in order.addresses if not self.links[address].is_usable]
        if never_ready:
            raise Unreachable("; ".join(link.detail for link in never_ready))
        snapshot = self.snapshot(order)
        idle = [model for model in order.idle if model in snapshot.held]
        busy = [model for model in order.busy if model in snapshot.held]
        plan = plan_load(order, snapshot, order.policy, idle, busy)
        if plan.evicted:
            names = ", ".join(snapshot.names[model] for model in sorted(plan.evicted))
            raise MemoryInUse(f"{order.name} needs memory that other models have: {names}", models=plan.evicted)
        return plan

    def _memory_error(self, order: LoadOrder, address: str, error: OutOfDeviceMemory) -> OutOfDeviceMemory:
        """*error* of a worker that has less memory than was planned with; others may have to go there first."""
        others = (model for model in (*order.idle, *order.busy) if model in self.pipelines)
        there = frozenset(model for model in others if self.pipelines[model].held_on(address))
        return MemoryInUse(str(error), models=there) if there else error

    def snapshot(self, order: LoadOrder) -> ClusterSnapshot:
        """What the workers of *order* have, once they have joined or been given up.

        Raises:
            OutOfDeviceMemory: this machine's own device is not ready.
        """
        links, local = [self.links[address] for address in order.addresses], self.links[LOCAL]
        if local.status is not Status.READY:
            raise OutOfDeviceMemory(f"this machine's own device is not ready: {local.detail or local.status.value}")
        others = {model: pipeline for model, pipeline in self.pipelines.items() if model != order.model}
        profiles = [link.profile for link in links if link.status is Status.READY]
        return ClusterSnapshot(
            tuple(profile.as_fast_as_identical(profiles) for profile in profiles),
            local.profile,
            {model: pipeline.held() for model, pipeline in others.items()},
            {model: pipeline.order.name for model, pipeline in others.items()},
            tuple(link.detail for link in links if link.status is not Status.READY),
        )

    def _ended(self, pipeline: Pipeline, effects: list[Effect]) -> list[Effect]:
        """*effects* of what happened to *pipeline*, which is forgotten if that was its end."""
        if not pipeline.stages:
            self._programs = {program: other for program, other in self._programs.items() if other is not pipeline}
        if pipeline.phase is Phase.GONE:
            del self.pipelines[pipeline.order.model]
        return effects

    # What can be seen

    def state(self, use: Mapping[int, UseState] = MappingProxyType({})) -> ClusterState:
        """Return what ``/api/cluster`` shows; *use*: what the engines say of each model."""
        workers = tuple(self._worker_state(link) for link in self.links.values())
        models = tuple(pipeline.state(use.get(model, NO_USE)) for model, pipeline in self.pipelines.items())
        return ClusterState(VERSION, PROTOCOL, workers, models)

    def _worker_state(self, link: Link) -> WorkerState:
        runs = [(pipeline, pipeline.layers_on(link.address)) for pipeline in self.pipelines.values()]
        layers = [(pipeline.order.name, text) for pipeline, text in runs if text]
        return link.state(
            held_bytes=sum(pipeline.held_on(link.address) for pipeline, _ in runs),
            layers=layers[0][1] if len(layers) == 1 else "; ".join(f"{name} {text}" for name, text in layers),
        )
