"""What can be seen of the cluster: workers, models, stages, plans. ``/api/cluster`` and below are this, as JSON."""

from __future__ import annotations

import msgspec


class Percentiles(msgspec.Struct, frozen=True):
    """Latencies of the last steps, in microseconds."""

    p50_us: float
    p95_us: float


class StageLatency(msgspec.Struct, frozen=True):
    """Where the time of a decode step goes on one stage: in kernels, on the wire, waiting in the worker."""

    compute: Percentiles
    wire: Percentiles
    queue: Percentiles
    steps: int


class TokenSpeeds(msgspec.Struct, frozen=True):
    """Tokens per second of one stream; 0 when it is not known."""

    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0


class StageState(msgspec.Struct, frozen=True):
    """One stage of a model.

    Attributes:
        part: "layers", "head" or "whole".
        first_layer, last_layer: inclusive; -1 when it has none.
        predicted_us: of one decoded token, the way to the worker included.
    """

    worker: str
    part: str
    first_layer: int
    last_layer: int
    latency: StageLatency | None = None
    predicted_us: float = 0.0


class WorkerState(msgspec.Struct, frozen=True):
    """One worker as the broker sees it.

    Attributes:
        address: "10.0.0.10:50052", or "local" for the broker's own device.
        status: "connecting", "ready", "lost", "refused"; "idle": there, but not connected, because no model needs it;
            "not tried": nobody has looked whether it is there.
        detail: why it is lost or refused, for a person.
        held_bytes: what the models that are loaded or being loaded take of its budget.
        layers: that it holds, "0-14"; of several models with their names.
        rtt_us, bandwidth_bytes_per_s: of the link, measured at join; 0 for the local device.
    """

    address: str
    status: str
    detail: str = ""
    version: str = ""
    protocol: int = 0
    host: str = ""
    devices: tuple[str, ...] = ()
    threads: int = 0
    memory_total: int = 0
    memory_budget: int = 0
    held_bytes: int = 0
    decode_bytes_per_s: float = 0.0
    prefill_macs_per_s: float = 0.0
    rtt_us: float = 0.0
    bandwidth_bytes_per_s: float = 0.0
    layers: str = ""


class UploadState(msgspec.Struct, frozen=True):
    """How many bytes of weights a worker has acknowledged, of those that it must be sent."""

    worker: str
    sent_bytes: int
    total_bytes: int


class UseState(msgspec.Struct, frozen=True):
    """How much a model is used.

    Attributes:
        running: requests that hold KV pages; waiting: those that do not yet, or not while their reader is behind.
        in_flight: microbatches on their way through the stages.
        free_pages: pages of KV cache that no request holds.
    """

    running: int = 0
    waiting: int = 0
    in_flight: int = 0
    free_pages: int = 0


NO_USE = UseState()


class ModelState(msgspec.Struct, frozen=True):
    """One model that is loaded or being loaded.

    Attributes:
        status: "joining", "loading", "warming up" or "loaded".
        nbytes: memory on all workers, by the plan until they have counted it.
        uploads: of the workers that must be sent weights.
        notes: what the planner has to say, such as that one machine alone would be faster.
        kv_pages: of its cache, 64 tokens each.
        missing: why workers that were named have no part in it.
        predicted: from what workers and links were measured at when they joined; measured: since the model is loaded.
    """

    name: str
    status: str
    nbytes: int = 0
    uploads: tuple[UploadState, ...] = ()
    stages: tuple[StageState, ...] = ()
    notes: tuple[str, ...] = ()
    predicted: TokenSpeeds = TokenSpeeds()
    measured: TokenSpeeds = TokenSpeeds()
    kv_pages: int = 0
    use: UseState = NO_USE
    missing: tuple[str, ...] = ()


class ClusterState(msgspec.Struct, frozen=True):
    """Everything ``/api/cluster`` tells: every worker, and every model in the order in which they were asked for."""

    version: str
    protocol: int
    workers: tuple[WorkerState, ...]
    models: tuple[ModelState, ...] = ()


class PlannedStage(msgspec.Struct, frozen=True):
    """One stage of a plan.

    Attributes:
        need_bytes: what the plan counts for it: weights with headroom, KV cache, scratch memory.
        predicted_us: of one decoded token, the way to the worker included.
    """

    worker: str
    part: str
    first_layer: int
    last_layer: int
    weight_bytes: int
    kv_bytes: int
    scratch_bytes: int
    need_bytes: int
    predicted_us: float


class PlanState(msgspec.Struct, frozen=True):
    """One plan of a dry run.

    Attributes:
        chosen: whether it is what loading the model would do.
        error: why there is no such plan; empty when there is.
        unloads: models that would have to go.
    """

    name: str
    chosen: bool
    error: str = ""
    stages: tuple[PlannedStage, ...] = ()
    predicted: TokenSpeeds = TokenSpeeds()
    unloads: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class DryRun(msgspec.Struct, frozen=True):
    """Everything ``/api/cluster/plan`` tells.

    Attributes:
        missing: why each worker that was named and did not join is not there.
    """

    model: str
    num_ctx: int
    num_parallel: int
    policy: str
    plans: tuple[PlanState, ...]
    missing: tuple[str, ...] = ()
