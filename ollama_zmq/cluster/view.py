"""What people see of the coordinator: its workers and models as the records of ``/api/cluster``. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ollama_zmq.cluster.link import ENDED, JOINING, Link, Status
from ollama_zmq.cluster.links import Links
from ollama_zmq.cluster.pipeline import Pipeline
from ollama_zmq.cluster.speeds import forecast, token_us
from ollama_zmq.cluster.stages import LOCAL
from ollama_zmq.cluster.state import (
    NO_USE,
    ClusterState,
    ModelState,
    StageState,
    TokenSpeeds,
    UploadState,
    UseState,
    WorkerState,
)
from ollama_zmq.version import PROTOCOL, VERSION


def cluster_state(
    links: Links, pipelines: Mapping[int, Pipeline], use: Mapping[int, UseState], listed: Mapping[str, str]
) -> ClusterState:
    """Return what ``/api/cluster`` shows.

    Args:
        pipelines: model number -> the model.
        use: model number -> what its engine says of it.
        listed: address of a worker that may take part -> why it cannot, or "". Shown if it is not connected.
    """
    workers = tuple(worker_state(link, pipelines) for link in links.values())
    named = {address: links.one_name_each((address,))[0] for address in listed}
    workers += tuple(
        WorkerState(address, "lost", why) if why else links.unconnected(address)
        for address, why in listed.items()
        if named[address] not in links
    )
    place = {name: number for number, name in enumerate(named.values())}
    place[LOCAL] = -1
    workers = tuple(sorted(workers, key=lambda worker: place.get(worker.address, len(place))))
    models = tuple(model_state(pipeline, use.get(model, NO_USE)) for model, pipeline in pipelines.items())
    return ClusterState(VERSION, PROTOCOL, workers, models)


def worker_state(link: Link, pipelines: Mapping[int, Pipeline]) -> WorkerState:
    """Return one worker, with what it holds of the models."""
    status = "connecting" if link.status in JOINING else link.status.value
    if link.status is Status.ABSENT:
        status = "idle"
    fails = link.status in ENDED or (link.status is Status.CONNECTING and bool(link.detail or link.known))
    known = WorkerState(
        link.address,
        status,
        link.why if fails else "",
        held_bytes=sum(pipeline.held_on(link.address) for pipeline in pipelines.values()),
        layers=_layers(link.address, pipelines),
    )
    if (welcome := link.welcome) is None:
        return known
    return msgspec.structs.replace(
        known,
        version=welcome.package,
        protocol=welcome.protocol,
        host=welcome.host,
        devices=tuple(device.name for device in welcome.devices),
        threads=welcome.threads,
        memory_total=welcome.memory_total,
        memory_budget=welcome.memory_budget,
        decode_bytes_per_s=welcome.decode_bytes_per_s,
        prefill_macs_per_s=welcome.prefill_macs_per_s,
        rtt_us=link.rtt_s * 1e6,
        bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
    )


def model_state(pipeline: Pipeline, use: UseState = NO_USE) -> ModelState:
    """Return one model, which is used so much."""
    order, placement, costs = pipeline.order, pipeline.placement, pipeline.costs
    plain = (stage.state for stage in pipeline.stages)
    stages = tuple(
        StageState(s.worker, s.part, s.first_layer, s.last_layer, window.summary(), token_us(cost))
        for s, window, cost in zip(plain, pipeline.latency, costs, strict=True)
    )
    uploads = ((address, upload) for address, upload in pipeline.uploads.items() if upload.total)
    return ModelState(
        order.name,
        pipeline.phase.value,
        sum(pipeline.held().values()),
        tuple(UploadState(address, upload.done, upload.total) for address, upload in uploads),
        stages,
        notes=placement.all_notes if placement else (),
        predicted=forecast(costs, order.max_tokens) if costs else TokenSpeeds(),
        measured=pipeline.speed.speeds(),
        kv_pages=order.kv_pages,
        use=use,
        missing=pipeline.missing,
    )


def _layers(address: str, pipelines: Mapping[int, Pipeline]) -> str:
    """The layers that a worker holds, as people read them; of several models with their names."""
    found = []
    for pipeline in pipelines.values():
        runs = [stage.layers for stage in pipeline.stages if stage.address == address and stage.layers]
        if runs:
            found.append((pipeline.order.name, ", ".join(f"{run.start}-{run.stop - 1}" for run in runs)))
    return found[0][1] if len(found) == 1 else "; ".join(f"{name} {text}" for name, text in found)
