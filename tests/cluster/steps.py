"""Loads and steps of a small model over workers A and B, as the tests of the coordinator ask for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ollama_zmq.cluster.events import Effect
from ollama_zmq.cluster.pipeline import Pipeline
from ollama_zmq.cluster.stages import LoadOrder
from ollama_zmq.engine.requests import Microbatch
from ollama_zmq.models.network import Network
from tests.cluster.fake_workers import FakeWorkers

A, B = "a:50052", "b:50052"


def order(network: Network, *addresses: str, model: int = 1, **fields: Any) -> LoadOrder:
    return LoadOrder(model, "tiny", network, "sha256-00", addresses, 128, 1, 16, **fields)


def load(workers: FakeWorkers, wanted: LoadOrder) -> list[Effect]:
    return workers.carry_out(workers.coordinator.load(wanted, workers.now))


def run(workers: FakeWorkers, microbatch: Microbatch, model: int = 1) -> list[Effect]:
    """Start a step whose hidden state is 7 everywhere."""
    pipeline = model_of(workers, model)
    if len(pipeline.stages) == 1:
        return workers.coordinator.run(model, microbatch, microbatch.token_ids, workers.now)
    tensor = np.full((1, pipeline.order.network.hidden_size), 7, np.float32)
    return workers.coordinator.run(model, microbatch, tensor, workers.now)


def model_of(workers: FakeWorkers, model: int = 1) -> Pipeline:
    return workers.coordinator.pipelines[model]


def decode_step(number: int = 1) -> Microbatch:
    return Microbatch(number, np.array([7], np.int32), lengths=(1,), positions=(0,), pages=((0,),), rows=(0,))
