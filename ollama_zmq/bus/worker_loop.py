"""The loop of a worker: frames become events, effects become sends and kernels. It decides nothing.

One thread owns the socket and runs the kernels; libzmq's own I/O thread keeps receiving and answers heartbeats
meanwhile. What has arrived is read before the next piece of work and before time passes, so a long computation is never
mistaken for a silent broker.
"""

from __future__ import annotations

import re
from collections import deque
from time import monotonic
from typing import Any

import structlog
import zmq

from ollama_zmq.bus.inflow import frame_nbytes
from ollama_zmq.bus.runner import Reply
from ollama_zmq.bus.security import ZapAuthenticator
from ollama_zmq.bus.service import Service
from ollama_zmq.bus.sockets import bind, check_size, read_all, rebind, send, worker_socket
from ollama_zmq.bus.wakeup import Wakeup
from ollama_zmq.bus.weights import FindBlob
from ollama_zmq.bus.welcome import id_file, worker_id
from ollama_zmq.cluster.worker import SILENCE_LIMIT_S
from ollama_zmq.cluster.worker_events import Compute, PeerDisconnected, Received, Rejected, Stopped, TimePassed
from ollama_zmq.devices.base import Device
from ollama_zmq.errors import LocalProtocolError, RemoteProtocolError
from ollama_zmq.wire import frames
from ollama_zmq.wire.frames import Envelope

MAX_IDLE_S = 1.0
OTHERS_LIMIT_MS = 200
GOODBYE_MS = 200  # at most, for what is unsent at the end: where it goes nobody may be any more

log = structlog.get_logger()


class WorkerLoop(Service):
    """A :class:`Service` behind a socket, until :meth:`stop`.

    Args:
        context: None for one of its own.
        endpoint: "tcp://host:port", port "*" for any.
        name: "host:port" of this worker, for messages to people; port "*" for the one that is chosen.
        find_blob: finds a blob in this machine's own store.
        zap: let one broker in at a time. Needs a context without another ZAP handler.

    Attributes:
        bound_endpoint, port: where it listens; known at once.

    Raises:
        RequestError: it cannot listen there.
    """

    def __init__(
        self,
        context: zmq.Context[Any] | None,
        endpoint: str,
        device: Device,
        *,
        name: str,
        find_blob: FindBlob,
        zap: bool,
    ) -> None:
        super().__init__(device, name=name, find_blob=find_blob, silence_limit_s=SILENCE_LIMIT_S)
        self._owns_context = context is None
        self._context: zmq.Context[Any] = context or zmq.Context()
        self._inbox: deque[tuple[float, list[zmq.Frame]]] = deque()
        self._wakeup = Wakeup()
        self._stopping = self._disconnected = False
        self._dealer = worker_socket(self._context, endpoint, zap=zap)
        self._authenticator: ZapAuthenticator | None = None
        try:
            if zap:
                self._authenticator = ZapAuthenticator(self._context, self._on_disconnect, lambda: device.budget.used)
                self._authenticator.watch(self._dealer)
            self.bound_endpoint = bind(self._dealer, endpoint)
            self.port = int(self.bound_endpoint.rpartition(":")[2])
            self.worker.name = re.sub(r":\*$", f":{self.port}", name)
            self._welcome.id = worker_id(self.bound_endpoint, id_file())
        except BaseException:
            self.close()
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._dealer, zmq.POLLIN)
        self._poller.register(self._wakeup.fileno(), zmq.POLLIN)

    def run(self) -> None:
        """Serve until :meth:`stop`, then say so and close everything. The calling thread owns the socket meanwhile."""
        try:
            while not self._stopping:
                self._run_once()
            self.apply(Stopped(monotonic()))
            self._dealer.setsockopt(zmq.LINGER, GOODBYE_MS)
        finally:
            self.close()

    def stop(self) -> None:
        """Make :meth:`run` return soon. May be called from any thread and from a signal handler."""
        self._stopping = True
        self._wakeup.wake()

    def close(self) -> None:
        """Forget every program and close the sockets; for a loop that is never run."""
        self.runner.release_all()
        if self._authenticator is not None:
            self._authenticator.close()
        self._dealer.close()
        self._wakeup.close()
        if self._owns_context:
            self._context.term()

    def _run_once(self) -> None:
        """Handle one message, or else load a part of a weight, or else let time pass."""
        self._read_all()
        if self._inbox:
            arrived, parts = self._inbox.popleft()
            self._on_frames(parts, arrived)
        elif self.runner.busy:
            self.load_next()
        else:
            self.apply(TimePassed(monotonic()))
            if self._authenticator is not None:
                self._authenticator.drop_silent()
            self._wait()

    def _read_all(self) -> None:
        self._inbox += [(monotonic(), parts) for parts in read_all(self._dealer)]
        if self._disconnected:
            self._disconnected = False
            self.apply(PeerDisconnected(monotonic()))

    def _wait(self) -> None:
        timeout_s = min(self.worker.next_deadline() - monotonic(), MAX_IDLE_S)
        ready = self._poller.poll(max(0, int(timeout_s * 1000) + 1))
        if any(source == self._wakeup.fileno() for source, _ in ready):
            self._wakeup.clear()

    def _on_disconnect(self) -> None:
        """Called by the authenticator's thread."""
        self._disconnected = True
        self._wakeup.wake()

    def _on_frames(self, parts: list[zmq.Frame], arrived: float) -> None:
        if self._authenticator is not None and not self._is_served(self._authenticator, parts):
            return
        try:
            envelope = frames.decode([part.buffer for part in parts])
        except RemoteProtocolError as error:
            log.warning("message.rejected", peer=self.worker.broker, error=str(error))
            self.apply(Rejected(monotonic(), error))
            return
        self.apply(Received(arrived, envelope))

    def _is_served(self, authenticator: ZapAuthenticator, parts: list[zmq.Frame]) -> bool:
        """Whether a message is of the peer that is served. Before the first is answered all others are gone."""
        descriptor = int(parts[-1].get(zmq.SRCFD))
        self.peer = str(parts[-1].get("Peer-Address"))
        authenticator.guard.consumed(descriptor, sum(frame_nbytes(len(part)) for part in parts))
        if not authenticator.is_served(int(parts[-1].get("User-Id")), descriptor):
            return False
        for _ in range(OTHERS_LIMIT_MS):
            if not authenticator.has_others():
                break
            self._dealer.poll(1, zmq.POLLERR)
        return True

    def send(self, envelope: Envelope) -> None:
        """Send without waiting: when nobody is there or nobody reads, the message is dropped and ``seq`` shows it.

        So does one that does not fit a message, a fault of ours.
        """
        try:
            parts = frames.encode(envelope)
        except LocalProtocolError as error:
            log.error("message.unsendable", peer=self.worker.broker, error=str(error))
            return
        try:
            send(self._dealer, parts)
        except zmq.Again:
            log.warning("message.dropped", peer=self.worker.broker)
            return
        if self._authenticator is not None:
            self._authenticator.sent(parts)

    def drop_peer(self) -> None:
        if self._authenticator is not None:
            self._authenticator.drop_served(f"silent for {self.worker.silence_limit_s:g} s")
        else:
            rebind(self._dealer, self.bound_endpoint)

    def on_lease(self, held: bool) -> None:
        super().on_lease(held)
        if self._authenticator is not None:
            self._authenticator.lease(held)

    def compute(self, effect: Compute) -> list[Reply]:
        replies = super().compute(effect)
        for output in (output for reply in replies for output in reply.tensors.values()):
            check_size(output.nbytes)
        return replies
