"""What the workers of an order have at one moment: memory, speeds, and which models hold how much of it.

A snapshot: plans can be made from it in any thread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ollama_zmq.cluster.placement import Demand, Placement, Policy, place
from ollama_zmq.cluster.work import Site


@dataclass(frozen=True, slots=True)
class Survey:
    """The places where a model may go.

    Attributes:
        workers: those that are ready, in the order they were named; local: this machine's own device. Their budgets
            are what they may use for all models together.
        held: model number -> worker address -> bytes, of the models that are loaded or being loaded.
        names: model number -> name.
        absent: why each of the other workers that were named is not there.
    """

    workers: tuple[Site, ...]
    local: Site
    held: Mapping[int, Mapping[str, int]]
    names: Mapping[int, str]
    absent: tuple[str, ...] = ()

    def plan(self, demand: Demand, policy: Policy, gone: Collection[int] = ()) -> Placement:
        """The best plan beside the models that are there, when some of them are *gone*.

        Raises:
            OutOfDeviceMemory: there is none.
        """
        return place(demand, [self._free(site, gone) for site in self.workers], self._free(self.local, gone), policy)

    def of(self, *addresses: str) -> Survey:
        """The same with no other workers than *addresses*."""
        return replace(self, workers=tuple(site for site in self.workers if site.address in addresses))

    def site(self, address: str) -> Site:
        """The place called *address*."""
        return next(site for site in (*self.workers, self.local) if site.address == address)

    def _free(self, site: Site, gone: Collection[int]) -> Site:
        taken = sum(held.get(site.address, 0) for model, held in self.held.items() if model not in gone)
        return replace(site, budget=site.budget - taken)
