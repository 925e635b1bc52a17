"""What the workers of an order have at one moment: memory, speeds, and which models hold how much of it.

Plans can be made from it in any thread; nothing is loaded and nobody is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from ollama_zmq.cluster.cost_model import WorkerProfile
from ollama_zmq.cluster.link import Status
from ollama_zmq.cluster.links import Links
from ollama_zmq.cluster.pipeline import Pipeline
from ollama_zmq.cluster.placement import Demand, Placement, Policy, place
from ollama_zmq.cluster.stages import LOCAL
from ollama_zmq.errors import StageLost

RELOAD_S, RELOAD_BYTES_PER_S = 1.0, 500e6  # what a load takes whatever its size, and of a file that is on a disk


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """What the workers of an order have.

    Attributes:
        workers: those that are ready, in the order they were named; local: this machine's own device. Their budgets
            are what they may use for all models together.
        held: model number -> worker address -> bytes, of the models that are loaded or being loaded.
        names: model number -> name.
        missing: why each of the other workers that were named is not there.
    """

    workers: tuple[WorkerProfile, ...]
    local: WorkerProfile
    held: Mapping[int, Mapping[str, int]]
    names: Mapping[int, str]
    missing: tuple[str, ...] = ()

    def plan(self, demand: Demand, policy: Policy, evicted: Collection[int] = ()) -> Placement:
        """The best plan beside the models that are there, when some of them are *evicted*.

        Raises:
            OutOfDeviceMemory: there is none.
        """
        return place(
            demand, [self._free(profile, evicted) for profile in self.workers], self._free(self.local, evicted), policy
        )

    def reload_s(self, model: int) -> float:
        """Seconds that it takes to load a model again, which its next user waits for."""
        return RELOAD_S + sum(self.held[model].values()) / RELOAD_BYTES_PER_S

    def of(self, *addresses: str) -> ClusterSnapshot:
        """The same with no other workers than *addresses*."""
        return replace(self, workers=tuple(profile for profile in self.workers if profile.address in addresses))

    def profile(self, address: str) -> WorkerProfile:
        """The worker at *address*."""
        return next(profile for profile in (*self.workers, self.local) if profile.address == address)

    def _free(self, profile: WorkerProfile, evicted: Collection[int]) -> WorkerProfile:
        taken = sum(held.get(profile.address, 0) for model, held in self.held.items() if model not in evicted)
        return replace(profile, budget=profile.budget - taken)


def snapshot_of(links: Links, addresses: Iterable[str], models: Mapping[int, Pipeline]) -> ClusterSnapshot:
    """Return what the workers at *addresses* have beside *models*, once they have joined or been given up.

    Raises:
        StageLost: this machine's own device is not ready.
    """
    local, named = links[LOCAL], [links[address] for address in links.one_name_each(addresses)]
    if local.status is not Status.READY:
        why = local.detail or local.status.value
        raise StageLost(f"this machine's own device is not ready: {why}", worker=LOCAL)
    profiles = [link.profile for link in named if link.status is Status.READY]
    return ClusterSnapshot(
        tuple(profile.as_fast_as_identical(profiles) for profile in profiles),
        local.profile,
        {model: pipeline.held() for model, pipeline in models.items()},
        {model: pipeline.order.name for model, pipeline in models.items()},
        tuple(link.why for link in named if link.status is not Status.READY),
    )
