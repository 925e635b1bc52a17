"""Every worker the broker knows: connected, greeted one at a time on each host, given back.

Every connection has an epoch of its own, counted over all workers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from ollama_zmq.cluster.events import Effect
from ollama_zmq.cluster.link import ENDED, JOINING, Link, Status, there_now
from ollama_zmq.cluster.stages import LOCAL
from ollama_zmq.cluster.state import WorkerState
from ollama_zmq.wire.messages import Bye

LEASE_IDLE_S = 5.0
LOST_KEPT = 1024  # addresses of which it is known whether they are there, though nobody names them now
NOWHERE = frozenset[str]()


class Links(Mapping[str, Link]):
    """Address -> link, the local device among them."""

    def __init__(self, broker: str, cores: int = 0) -> None:
        self._broker = broker
        self._cores = cores
        self._links = {LOCAL: Link(LOCAL, broker, remote=False, cores=cores)}
        self._epochs = 0
        self._endpoints: dict[str, frozenset[str]] = {}
        self._ids: dict[str, str] = {}
        self._lost: dict[str, str] = {}  # left while they were lost -> why they were, oldest first
        self._seen: dict[str, str] = {}  # looked at, or left while they were ready -> why they are not there, or ""

    def __getitem__(self, address: str) -> Link:
        return self._links[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def locate(self, found: Mapping[str, Iterable[str]], kept: Collection[str] = ()) -> None:
        """Take note of the endpoints of addresses, as they were looked up just now; none leaves what was known.

        What was known of addresses that nobody uses is forgotten, unless they are *kept* or lead to a worker in use.
        """
        located = {address: frozenset(endpoints) for address, endpoints in found.items()}
        self._endpoints |= {address: endpoints for address, endpoints in located.items() if endpoints}
        used = {*self._links, *kept}
        used |= {other for other in (*self._endpoints, *self._ids) if any(self._is_same(other, it) for it in used)}
        self._ids = {address: one for address, one in self._ids.items() if address in used}
        used |= found.keys()
        self._endpoints = {address: those for address, those in self._endpoints.items() if address in used}

    def identify(self, address: str, worker_id: str) -> None:
        """Take note of what the worker at *address* calls itself, whatever address it is reached at."""
        self._ids[address] = worker_id

    def others_of(self, address: str) -> list[Link]:
        """Return the connected links to the worker at *address* that have other names."""
        alive = (link for link in self._links.values() if link.status not in ENDED | {Status.ABSENT})
        return [link for link in alive if link.address != address and self._is_same(address, link.address)]

    def one_name_each(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return *addresses* with one name for each worker: the one under which it is connected, else the first."""
        found: dict[str, None] = {}
        for address in addresses:
            alive = [link.address for link in self._links.values() if link.status not in ENDED | {Status.ABSENT}]
            same = [other for other in (*alive, *found) if self._is_same(address, other)]
            found[same[0] if same else address] = None
        return tuple(found)

    def _is_same(self, address: str, other: str) -> bool:
        """Whether both lead to one endpoint, or to workers that say one id."""
        if address == other or not self._endpoints.get(address, NOWHERE).isdisjoint(
            self._endpoints.get(other, NOWHERE)
        ):
            return True
        return address in self._ids and self._ids[address] == self._ids.get(other)

    def join(self, addresses: Iterable[str], now: float, foreign: Collection[str] = ()) -> list[Effect]:
        """Connect to *addresses* and the local device, where no connection stands or is being made."""
        effects: list[Effect] = []
        for address in (LOCAL, *addresses):
            link = self._links.setdefault(address, Link(address, self._broker, cores=self._cores))
            link.foreign = address in foreign
            link.was_lost = link.was_lost or address in self._lost
            link.known = self._lost.pop(address, "") or self._seen.pop(address, "") or link.known
            if link.status is not Status.READY and link.status not in JOINING:
                self._epochs += 1
                effects += link.join(self._epochs, now)
        return effects

    def looked(self, found: Mapping[str, str]) -> None:
        """Take note of who was *found* to be there without being connected: address -> why not, or ""."""
        self._seen = {address: why for address, why in found.items() if address not in self._links}

    def unconnected(self, address: str) -> WorkerState:
        """What ``/api/cluster`` shows of a worker that there is no link to."""
        if address not in self._seen and address not in self._lost:
            return WorkerState(address, "not tried")
        why = self._lost.get(address) or self._seen.get(address, "")
        return WorkerState(address, "lost" if why else "idle", why)

    def why_without(self, address: str) -> str:
        """Why a model that is loaded has no part on a worker that was not there then, as it stands with it now."""
        link = self._links.get(address)
        return link.why if link is not None else there_now(address)  # only a worker that was ready is given back

    @property
    def some_join(self) -> bool:
        """Whether any worker has neither joined nor been given up."""
        return any(link.status in JOINING for link in self._links.values())

    def start_handshakes(self, now: float) -> list[Effect]:
        """Begin the handshake with those that wait for it, one at a time on each host."""
        effects: list[Effect] = []
        busy = {link.host for link in self._links.values() if link.status is Status.HANDSHAKE}
        for link in self._links.values():
            if link.status is Status.WAITING and link.host not in busy:
                effects += link.start_handshake(now)
                busy.add(link.host)
        return effects

    def leave_idle(self, needed: Collection[str], now: float) -> list[Effect]:
        """End the lease of every worker that was not *needed* for ``LEASE_IDLE_S``: others may want it."""
        effects: list[Effect] = []
        for address, link in list(self._links.items()):
            if address == LOCAL or address in needed or link.status is not Status.READY:
                link.used_at = now
            elif now - link.used_at > LEASE_IDLE_S:
                effects += self.leave(address)
        return effects

    def leave_all_but(self, kept: Collection[str]) -> list[Effect]:
        """End the lease of every worker that is not *kept*, and forget it."""
        return [effect for address in list(self._links) if address not in kept for effect in self.leave(address)]

    def leave(self, address: str) -> list[Effect]:
        """End the lease of a worker and forget it."""
        link = self._links.pop(address)
        if link.status is Status.READY:
            self._seen[address] = ""
            if len(self._seen) > LOST_KEPT:
                del self._seen[next(iter(self._seen))]
        if link.was_lost or link.status is Status.CONNECTING:  # a load has gone on without it
            self._lost[address] = link.detail or link.known
            if len(self._lost) > LOST_KEPT:
                del self._lost[next(iter(self._lost))]
        if link.status is Status.ABSENT or link.status in ENDED:
            return []
        goodbye: list[Effect] = [link.send(Bye())] if link.status is not Status.CONNECTING else []
        return goodbye + link.drop(Status.ABSENT, "")
