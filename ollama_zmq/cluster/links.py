"""Every worker the broker knows: connected, greeted one at a time on each host, given back.

Every connection has an epoch of its own, counted over all workers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from ollama_zmq.cluster.events import Effect
from ollama_zmq.cluster.link import JOINING, Link, Status
from ollama_zmq.cluster.stages import LOCAL
from ollama_zmq.wire.messages import Bye

ENDED = frozenset({Status.LOST, Status.REFUSED})


class Links(Mapping[str, Link]):
    """Address -> link, the local device among them."""

    def __init__(self, broker: str, cores: int = 0) -> None:
        self._broker = broker
        self._cores = cores
        self._links = {LOCAL: Link(LOCAL, broker, remote=False, cores=cores)}
        self._epochs = 0

    def __getitem__(self, address: str) -> Link:
        return self._links[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def join(self, addresses: Iterable[str], now: float) -> list[Effect]:
        """Connect to *addresses* and the local device, where no connection stands or is being made."""
        effects: list[Effect] = []
        for address in (LOCAL, *addresses):
            link = self._links.setdefault(address, Link(address, self._broker, cores=self._cores))
            if link.status is not Status.READY and link.status not in JOINING:
                self._epochs += 1
                effects += link.join(self._epochs, now)
        return effects

    def are_joining(self, addresses: Iterable[str]) -> bool:
        """Whether one of *addresses*, or the local device, has neither joined nor been given up."""
        return any(self._links[address].status in JOINING for address in (LOCAL, *addresses))

    @property
    def some_join(self) -> bool:
        """Whether any worker has neither joined nor been given up."""
        return any(link.status in JOINING for link in self._links.values())

    def start_handshakes(self, now: float) -> list[Effect]:
        """Greet who waits, one at a time on each host."""
        effects: list[Effect] = []
        for link in self._links.values():
            busy = {other.host for other in self._links.values() if other.status is Status.HANDSHAKE}
            if link.status is Status.WAITING and link.host not in busy:
                effects += link.start_handshake(now)
        return effects

    def leave_all_but(self, kept: Collection[str]) -> list[Effect]:
        """End the lease of every worker that is not *kept*, and forget it."""
        return [effect for address in self._links.keys() - kept for effect in self._leave(address)]

    def _leave(self, address: str) -> list[Effect]:
        link = self._links.pop(address)
        if link.status is Status.ABSENT or link.status in ENDED:
            return []
        goodbye: list[Effect] = [link.send(Bye())] if link.status is not Status.CONNECTING else []
        return goodbye + link.drop(Status.ABSENT, "")
