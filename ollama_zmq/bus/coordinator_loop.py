"""The broker's thread: one ROUTER, the coordinator, an engine per model. It knows sockets and clocks, decides nothing.

Other threads hand it functions to run (:meth:`call`); everything that changes happens here. A step's path through this
thread is: engine -> microbatch -> coordinator -> ROUTER -> worker -> ROUTER -> coordinator -> engine -> outputs.
"""

from __future__ import annotations

import math
import queue
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import structlog
import zmq

from ollama_zmq.bus import sockets
from ollama_zmq.bus.addresses import Resolved
from ollama_zmq.bus.chunks import Chunks
from ollama_zmq.bus.dialer import Dialer, routing_of
from ollama_zmq.bus.local_worker import LocalWorker
from ollama_zmq.bus.served import ServedModels
from ollama_zmq.bus.stopwatch import Stopwatch
from ollama_zmq.bus.wakeup import Wakeup
from ollama_zmq.cluster.coordinator import Coordinator
from ollama_zmq.cluster.events import (
    Attached,
    Computed,
    Connect,
    ConnectionFailed,
    ConnectionLost,
    Disconnect,
    Effect,
    Event,
    Got,
    Joined,
    LoadFailed,
    ModelLoaded,
    ModelLost,
    Replaced,
    Send,
    SendChunk,
    StartedOver,
    StepFailed,
    Tick,
    Unsendable,
)
from ollama_zmq.cluster.link import ENDED
from ollama_zmq.cluster.stages import LOCAL
from ollama_zmq.cluster.worker_events import NO_MICROBATCH
from ollama_zmq.engine.engine import Engine
from ollama_zmq.engine.pacing import BrokerTime
from ollama_zmq.errors import LocalProtocolError, OllamaZmqError, OpError, RemoteProtocolError, Unreachable
from ollama_zmq.formats.mapped import drop_resident_pages
from ollama_zmq.wire import frames
from ollama_zmq.wire.messages import Define, Ping, Put, Release, Run

log = structlog.get_logger()

TICK_S = 0.1
IDLE_WAIT_S = 1.0  # at most, between two looks at the deadlines of the coordinator
SHORT_STEP = 16  # tokens that take hardly longer than one: nobody else need be served meanwhile
NOTHING = np.zeros(0, np.uint8)


class CoordinatorLoop:
    """Feeds one :class:`Coordinator` and the engines and carries out what they want until :meth:`stop`.

    Args:
        cores: that this process may use, for the coordinator.
        own_ports: of this machine, at which this process itself listens: no worker is there.
        load_timeout_s: how long a load may make no progress.

    Attributes:
        resolved: worker address -> where it is; filled by :meth:`know`, before the worker is joined.
        on_effect: told of what concerns a load: Joined, Replaced, ModelLoaded, LoadFailed, ModelLost.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        broker: str,
        local: LocalWorker,
        models: ServedModels,
        on_effect: Callable[[Effect], None],
        cores: int = 0,
        own_ports: frozenset[int] = frozenset(),
        load_timeout_s: float = math.inf,
    ) -> None:
        self.coordinator = Coordinator(broker, cores, load_timeout_s)
        self.resolved: dict[str, Resolved] = {}
        self._own_ports = own_ports
        self._models = models
        self._on_effect = on_effect
        self._context = context
        self._broker = broker
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wakeup = Wakeup()
        self._local = local
        self._local.on_reply = lambda envelope: self.call(lambda: self._on_local_reply(envelope))
        self._local_step: frames.Envelope | None = None  # the only one in flight; it runs when this turn is over
        self._running = True
        self._ticked_at = 0.0
        self._watch = Stopwatch()  # of what this thread does for microbatches
        self._arrived: deque[list[zmq.Frame]] = deque()  # read, not handled yet
        self._chunks = Chunks()
        self._pending: deque[Effect] = deque()  # to be carried out, in this order
        self._undelivered: deque[Callable[[], None]] = deque()  # tell what a step gave, once the next is on its way
        self._applying = False

    def call(self, function: Callable[[], None]) -> None:
        """Run *function* in the loop's thread, soon. May be called from any thread."""
        self._calls.put(function)
        self._wakeup.wake()

    def stop(self) -> None:
        """End :meth:`run`; leases are given back first."""

        def leave() -> None:
            self.apply(self.coordinator.leave_all())
            self._running = False

        self.call(leave)

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        self._router = sockets.broker_socket(self._context, self._broker)
        self._dialer = Dialer(self._router, self._own_ports, lambda: self._local.budget.used)
        poller = zmq.Poller()
        for source in (self._router, *self._dialer.sources, self._wakeup.fileno()):
            poller.register(source, zmq.POLLIN)
        try:
            while self._running:
                try:
                    self._serve_once(poller)
                except Exception:
                    log.exception("broker.failed")
                    self._start_over()
        finally:
            self._close()

    def know(self, resolved: Mapping[str, Resolved]) -> None:
        """Take note of where workers are, and forget it of those that nobody uses. Only in the loop's thread."""
        used = self.coordinator.addresses
        self.resolved = {address: where for address, where in self.resolved.items() if address in used} | dict(resolved)
        self.coordinator.locate({address: where.endpoints for address, where in resolved.items()})

    def apply(self, effects: list[Effect]) -> None:
        """Carry out *effects* in order, and what comes of them behind them. Only in the loop's thread.

        While effects are being carried out this only puts others in line.
        """
        self._pending += effects
        if self._applying:
            return
        self._applying = True
        try:
            while self._pending or self._undelivered:
                if self._pending:
                    self._try(self._pending.popleft())
                else:
                    self._undelivered.popleft()()
        finally:
            self._applying = False

    def pump(self, model: int) -> None:
        """Send every microbatch that the model's engine has ready. Only in the loop's thread."""
        now = time.monotonic()
        while (engine := self._models.engine(model)) is not None:
            microbatch = engine.next_microbatch(now)
            if microbatch is None:
                return
            token_ids, embedding = microbatch.token_ids, self._models[model].embedding
            tensor = embedding.rows(token_ids) if embedding is not None else token_ids
            self.apply(self.coordinator.run(model, microbatch, tensor, now))

    def _serve_once(self, poller: zmq.Poller) -> None:
        ready = self._ready(poller)
        if self._wakeup.fileno() in ready:
            self._run_calls()
        now = time.monotonic()
        if any(source in ready for source in self._dialer.sources) or now >= self._dialer.next_deadline():
            self._watch_connections(now)
        if self._router in ready or self._arrived:
            self._receive()
        if now - self._ticked_at >= TICK_S:
            self._ticked_at = now
            self.handle(Tick())
        self._run_local_step()

    def _ready(self, poller: zmq.Poller) -> dict[Any, int]:
        """Whom to listen to. Beside a step of this machine's own, with no worker connected, there are only calls."""
        has_work = self._arrived or self._local_step is not None
        if has_work and len(self.coordinator.links) == 1:
            return {} if self._calls.empty() else {self._wakeup.fileno(): zmq.POLLIN}
        timeout_ms = 0 if has_work else self._wait_ms()
        self._watch.stop()
        ready = dict(poller.poll(timeout_ms))
        self._watch.start()
        return ready

    def _wait_ms(self) -> int:
        now = time.monotonic()
        deadline = min(self.coordinator.next_deadline(now), self._dialer.next_deadline())
        wait_s = min(deadline - now, TICK_S if self.coordinator.n_in_flight else IDLE_WAIT_S)
        return max(int(wait_s * 1000), 0) + 1

    def _start_over(self) -> None:
        """After a fault of our own: whoever waits is told, nothing is loaded, and the next load may succeed."""
        error = OpError("internal error in the broker, see its log")
        self._arrived.clear()
        self._undelivered.clear()
        self._local_step = None
        self._pending = deque(effect for effect in self._pending if isinstance(effect, Connect | Disconnect))
        for model in self._models:
            self.apply([*self.coordinator.unload(model), LoadFailed(model, error), ModelLost(model, error)])
        self.apply([StartedOver(error)])

    def handle(self, event: Event) -> None:
        """Give one event to the coordinator and carry out what follows."""
        self.apply(self.coordinator.handle(event, time.monotonic()))

    def _run_calls(self) -> None:
        """Do what other threads have asked for, such as a request; what comes of messages is sent where they are."""
        self._wakeup.clear()
        if not self.coordinator.n_in_flight:
            self._watch.lap()  # what was done before concerns no microbatch
        while not self._calls.empty():
            self._calls.get()()
        for model in self._models:
            self.pump(model)

    def _receive(self) -> None:
        """Take every message that has arrived; rubbish costs its sender the connection, nothing else."""
        self._arrived += sockets.read_all(self._router)
        while self._arrived:
            parts = self._arrived.popleft()
            address, epoch = routing_of(parts[0].bytes)
            try:
                envelope = frames.decode([part.buffer for part in parts[1:]])
            except RemoteProtocolError as error:
                log.warning("message.rejected", peer=address, error=str(error))
                why = f"worker {address} sent what the protocol forbids: {error}"
                self.handle(ConnectionFailed(address, epoch, why))
                continue
            self._dialer.consumed(address, parts[1:])
            self.handle(Got(address, envelope))

    def _watch_connections(self, now: float) -> None:
        """Tell the coordinator what became of connections; of one that ended, what came over it before."""
        events, arrived = self._dialer.advance(now)
        self._arrived += arrived
        for event in events:
            if isinstance(event, ConnectionLost):
                self._receive()
            self.handle(event)

    def _try(self, effect: Effect) -> None:
        try:
            self._carry_out(effect)
        except OllamaZmqError as error:
            log.warning("effect.failed", effect=type(effect).__name__, error=str(error))

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(address, envelope):
                self._send(address, envelope)
            case SendChunk():
                self._send_chunk(effect)
            case Connect(address, epoch):
                self._connect(address, epoch)
            case Disconnect(address):
                self._log_loss(address)
                self._chunks.forget(address)
                self._disconnect(address)
            case Computed():
                self._computed(effect)
            case StepFailed(model, error=error):
                self._fail(model, error)
            case ModelLost(model, error):
                log.warning("model.lost", error=str(error))
                self._fail(model, error)
                self._on_effect(effect)
            case Joined() | Replaced() | ModelLoaded() | LoadFailed() | StartedOver():
                self._on_effect(effect)

    def _computed(self, done: Computed) -> None:
        """Let the engine read the logits and send the next step; what they say is told while that is computed."""
        engine = self._models.engine(done.model)
        if engine is None:
            return
        now = time.monotonic()
        engine.complete(done.microbatch, done.logits, now)
        sampling_s = time.monotonic() - now
        self.pump(done.model)
        self._undelivered.append(partial(self._deliver, engine, done, sampling_s))

    def _deliver(self, engine: Engine, done: Computed, sampling_s: float) -> None:
        """Hand out what the logits said, and let the engine learn how long it took."""
        self._models.deliver(engine.drain_outputs(time.monotonic()))
        engine.pacing.observe(done.times)
        engine.pacing.observe_broker(BrokerTime(done.times[0].rows, len(done.logits), self._watch.lap(), sampling_s))

    def _fail(self, model: int, error: OllamaZmqError) -> None:
        """End every request of a model with *error*."""
        if (engine := self._models.engine(model)) is not None:
            self._models.deliver([*engine.drain_outputs(time.monotonic()), *engine.fail(error)])

    def _send(self, address: str, envelope: frames.Envelope) -> None:
        """Send to a worker. A full or vanished peer shows as the error that it is, never as silence."""
        if address == LOCAL:
            self._send_local(envelope)
            return
        if isinstance(envelope.message, Release):
            self._chunks.forget(address, envelope.message.program)
        try:
            parts = frames.encode(envelope)
        except LocalProtocolError as error:
            parts = frames.encode(self._in_place_of(address, envelope, error))
        try:
            self._dialer.send(address, envelope.epoch, parts)
        except zmq.ZMQError as error:
            why = f"worker {address} takes no more messages: {error.strerror}"
            self.handle(ConnectionFailed(address, envelope.epoch, why))

    def _in_place_of(self, address: str, envelope: frames.Envelope, error: LocalProtocolError) -> frames.Envelope:
        """What goes under the number of a message that no frame can carry; whoever waits for that one is told."""
        match envelope.message:
            case Run(program, microbatch):
                self.handle(Unsendable(address, envelope.epoch, program, microbatch, error))
            case Define(program) | Put(program):
                self.handle(Unsendable(address, envelope.epoch, program, NO_MICROBATCH, error))
        return frames.Envelope(Ping(0), {"payload": NOTHING}, envelope.epoch, envelope.seq)

    def _send_local(self, envelope: frames.Envelope) -> None:
        """Hand *envelope* to the local device, in order. A short step that flies alone is kept for this thread."""
        if self._local_step is not None:
            self._local.post(self._local_step)
            self._local_step = None
        message, alone = envelope.message, self.coordinator.n_in_flight == 1
        if alone and isinstance(message, Run) and sum(message.lengths) <= SHORT_STEP:
            self._local_step = envelope
        else:
            self._local.post(envelope)

    def _on_local_reply(self, envelope: frames.Envelope) -> None:
        self._local.acknowledge()
        self.handle(Got(LOCAL, envelope))

    def _run_local_step(self) -> None:
        step, self._local_step = self._local_step, None
        if step is None:
            return
        self._watch.stop()
        replies = self._local.serve_here(step)
        self._watch.start()
        if replies is None:
            self._local.post(step)
            return
        for reply in replies:
            self.handle(Got(LOCAL, reply))

    def _send_chunk(self, effect: SendChunk) -> None:
        """Send a chunk of a weight, unless the connection that it is for, or the model, is gone meanwhile."""
        link = self.coordinator.links.get(effect.address)
        if link is None or link.epoch != effect.epoch or link.status in ENDED or effect.model not in self._models:
            return
        weight = self._models[effect.model].gguf.data(effect.source.name)
        put, chunk = self._chunks.put(effect, weight)
        self._send(effect.address, link.envelope(put, {"chunk": chunk}))
        drop_resident_pages(weight[: effect.offset + effect.nbytes])

    def _connect(self, address: str, epoch: int) -> None:
        if address == LOCAL:
            self.handle(Attached(address, epoch))
            return
        where = self.resolved[address]
        if not where.endpoints:
            self.handle(ConnectionFailed(address, epoch, where.why))
            return
        try:
            self._dialer.dial(address, where.endpoints, epoch, time.monotonic())
        except Unreachable as error:
            self.handle(ConnectionFailed(address, epoch, str(error)))

    def _log_loss(self, address: str) -> None:
        """Write why a worker is lost to the log; who named it himself is told less."""
        link = self.coordinator.links.get(address)
        if link is not None and link.status in ENDED:
            log.warning("worker.lost", worker=address, reason=link.detail)

    def _disconnect(self, address: str) -> None:
        """Forget a connection; what was queued on it goes with it."""
        if address != LOCAL:
            self._arrived += self._dialer.hang_up(address)

    def _close(self) -> None:
        self._dialer.close()
        self._router.close(0)
        self._wakeup.close()
