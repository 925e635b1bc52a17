"""Which of the listed workers a load goes over. A list names who *may* take part.

    Workers of the list                          Policy      The load
    all ready                                    any         begins at once
    some still connect                           use-rest    waits a short time for each, see below
    some let us in and measure themselves        use-rest    waits while there is progress, JOIN_LIMIT_S at most
    the rest lost, refused or too slow           use-rest    begins over those that are ready, and names the others
    some lost or refused                         refuse      fails when all have joined or been given up
    some lost or refused                         wait        they are tried again, for WAIT_LIMIT_S

How long a connection is waited for: ``CONNECT_GRACE_S`` from the first attempt; ``LOST_GRACE_S`` when it failed before,
because a worker known to be lost is no reason to wait. Whoever joins later is used by later loads. The local device is
always waited for: it measures itself once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ollama_zmq.cluster.link import JOIN_LIMIT_S, JOINING, Link, Status
from ollama_zmq.cluster.stages import LOCAL, Missing

CONNECT_GRACE_S = 1.5
LOST_GRACE_S = 0.5
WAIT_LIMIT_S = 600.0
RETRY_S = 2.0


@dataclass(slots=True)
class Gathering:
    """The workers of one load, or of a look at them, from the first attempt to connect until it can go on.

    Attributes:
        addresses: as they were asked for; ours: one name for each worker of them.
        began: when; retried_at: when those that were lost were last tried again (policy wait).
    """

    addresses: tuple[str, ...]
    ours: tuple[str, ...]
    missing: Missing
    began: float
    retried_at: float

    def is_over(self, links: Mapping[str, Link], now: float) -> bool:
        """Return whether to go on with those that are ready now."""
        links_of_ours = [links[address] for address in self.ours]
        pending = [link for link in links_of_ours if link.status in JOINING]
        if links[LOCAL].status in JOINING:
            return False
        if not pending:
            return self.missing is not Missing.WAIT or not self.absent(links) or now - self.began > WAIT_LIMIT_S
        if self.missing is not Missing.USE_REST:
            return False
        progress_at = max(link.progressed_at for link in links_of_ours)
        return all(now > _patience(link, progress_at) for link in pending)

    def absent(self, links: Mapping[str, Link]) -> list[Link]:
        """Return those that are not ready."""
        return [links[address] for address in self.ours if links[address].status is not Status.READY]

    def wants_retry(self, links: Mapping[str, Link], now: float) -> bool:
        """Return whether those that were lost shall be tried again now; noted as done."""
        due = self.missing is Missing.WAIT and now - self.retried_at >= RETRY_S
        if not due or not any(link.status not in JOINING for link in self.absent(links)):
            return False
        self.retried_at = now
        return True


class Gatherings:
    """Every look at workers and every load that waits for some of them to join."""

    def __init__(self) -> None:
        self._looks: list[Gathering] = []
        self._loads: dict[int, Gathering] = {}

    @property
    def models(self) -> Collection[int]:
        """The models whose workers still join."""
        return self._loads.keys()

    @property
    def addresses(self) -> set[str]:
        """The workers that are waited for."""
        return {address for gathering in self._all() for address in gathering.ours}

    def look(self, gathering: Gathering) -> None:
        """Wait for workers that somebody wants to know of."""
        self._looks.append(gathering)

    def load(self, model: int, gathering: Gathering) -> None:
        """Wait for the workers of a model."""
        self._loads[model] = gathering

    def forget(self, model: int) -> None:
        """Wait no more for the workers of a model."""
        self._loads.pop(model, None)

    def looks_over(self, links: Mapping[str, Link], now: float) -> list[Gathering]:
        """Return the looks that need not wait any more. They count until they are :meth:`ended`."""
        return [gathering for gathering in self._looks if gathering.is_over(links, now)]

    def ended(self, looks: Collection[Gathering]) -> None:
        """Forget *looks*."""
        self._looks = [gathering for gathering in self._looks if gathering not in looks]

    def take_loads(self, links: Mapping[str, Link], now: float) -> list[int]:
        """Take the models that need not wait any more."""
        over = [model for model, gathering in self._loads.items() if gathering.is_over(links, now)]
        for model in over:
            del self._loads[model]
        return over

    def to_retry(self, links: Mapping[str, Link], now: float) -> list[Gathering]:
        """Return those whose lost workers shall be tried again now."""
        return [gathering for gathering in self._all() if gathering.wants_retry(links, now)]

    def _all(self) -> list[Gathering]:
        return [*self._looks, *self._loads.values()]


def _patience(link: Link, progress_at: float) -> float:
    """Until when a load waits for *link*."""
    if link.status is Status.CONNECTING:
        return link.joined_at + (LOST_GRACE_S if link.was_lost else CONNECT_GRACE_S)
    return max(progress_at, link.joined_at) + JOIN_LIMIT_S
