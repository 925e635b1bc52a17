"""A broker without workers: it answers with the outputs it is given, from a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from ollama_zmq.bus.loads import LoadedModel, LoadRequest
from ollama_zmq.cluster.state import (
    ClusterState,
    DryRun,
    ModelState,
    PlannedStage,
    PlanState,
    StageState,
    TokenSpeeds,
    WorkerState,
)
from ollama_zmq.engine.requests import Finished, GenerationRequest, Output, RequestFailed, TextChunk, TokenLogprob
from ollama_zmq.errors import MemoryInUse, OllamaZmqError, RequestError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.text.tokenizer import load_tokenizer

Script = Callable[[GenerationRequest], Sequence[Output]]


def hello(request: GenerationRequest) -> Sequence[Output]:
    """ "Hello there!" in two pieces."""
    return [
        piece(request, "Hello", 200, -0.5),
        piece(request, " there!", 201, -1.5),
        Finished(
            request_id=request.request_id,
            reason="stop",
            context=(*request.token_ids, 200, 201),
            prompt_tokens=len(request.token_ids),
            output_tokens=2,
            prefill_s=0.5,
            decode_s=0.25,
        ),
    ]


def piece(request: GenerationRequest, text: str, token_id: int, logprob: float) -> TextChunk:
    """One token's text, with its log-probability if the request wants it."""
    entry = TokenLogprob(text, text.encode(), logprob, (TokenLogprob(text, text.encode(), logprob),))
    return TextChunk(request.request_id, text, (token_id,), (entry,) if request.logprobs else ())


class FakeBroker:
    """Records what it is asked. Loads whatever it is told to, unless ``load_error`` is set.

    Attributes:
        script: makes the outputs of a request; None leaves the request running.
        room: how many models fit; then the first that may go is named, and ``asked`` counts who asked.
        could_go: what the last plan was told of: what it replaces, what is idle and what is busy.
        contexts: how many the KV pages of a model hold that does not say.
        holds_loads: loads end only when :meth:`finish_load` is called.
    """

    def __init__(self) -> None:
        self.models: list[LoadedModel] = []
        self.loads: list[LoadRequest] = []
        self.room, self.asked = 99, 0
        self.contexts = 4
        self.n_unloads = 0
        self.submitted: list[GenerationRequest] = []
        self.canceled: list[str] = []
        self.planned: list[LoadRequest] = []
        self.could_go: tuple[object, ...] = ()
        self.script: Script | None = hello
        self.load_error: OllamaZmqError | None = None
        self.holds_loads = False
        self.is_closed = False
        self._sinks: dict[str, Callable[[Output], None]] = {}
        self._held: list[tuple[LoadRequest, LoadedModel | None, Future[LoadedModel]]] = []

    def start(self) -> None:
        """Nothing to start."""

    def close(self) -> None:
        self.is_closed = True

    def load(
        self,
        wanted: LoadRequest,
        *,
        replaces: LoadedModel | None = None,
        idle: Sequence[LoadedModel] = (),
        busy: Sequence[LoadedModel] = (),
    ) -> Future[LoadedModel]:
        self.asked += 1
        if len(self.models) - (replaces in self.models) >= self.room:
            in_the_way = {model.number for model in (*idle, *busy)[:1]}
            return failed(MemoryInUse("full", models=in_the_way))
        self.loads.append(wanted)
        future: Future[LoadedModel] = Future()
        self._held.append((wanted, replaces, future))
        if not self.holds_loads:
            self.finish_load()
        return future

    def finish_load(self) -> None:
        """End the oldest load, from another thread."""
        wanted, replaces, future = self._held.pop(0)
        in_thread(lambda: self._finish(wanted, replaces, future))

    def _finish(self, wanted: LoadRequest, replaces: LoadedModel | None, future: Future[LoadedModel]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        if self.load_error is not None:
            future.set_exception(self.load_error)
            return
        loaded = loaded_model(wanted, len(self.loads), self.contexts)
        self.models = [*(model for model in self.models if model is not replaces), loaded]
        future.set_result(loaded)

    def holds(self, model: LoadedModel) -> bool:
        return model in self.models

    def unload(self, model: LoadedModel) -> Future[None]:
        self.n_unloads += 1
        if model in self.models:
            self.models.remove(model)
        future: Future[None] = Future()
        in_thread(lambda: future.set_result(None))
        return future

    def submit(self, model: LoadedModel, request: GenerationRequest, on_output: Callable[[Output], None]) -> None:
        self.submitted.append(request)
        self._sinks[request.request_id] = on_output
        if self.script is not None:
            outputs = self.script(request)
            in_thread(lambda: [on_output(output) for output in outputs])

    def say(self, output: Output) -> None:
        """Deliver *output* of a request that runs, from another thread."""
        in_thread(lambda: self._sinks[output.request_id](output))

    def cancel(self, request_id: str) -> None:
        self.canceled.append(request_id)
        self.say(RequestFailed(request_id, RequestError("request canceled")))

    def read(self, request_id: str, pieces: int) -> None:
        """Nothing is ever paused."""

    def cluster(self, listed: Sequence[str] = ()) -> ClusterState:
        local = WorkerState(address="local", status="ready", layers="0-3", held_bytes=1000)
        workers = (local, *(WorkerState(address=address, status="idle") for address in listed))
        stages = (StageState("local", "whole", 0, 3),)
        speeds = {"predicted": TokenSpeeds(60.0), "measured": TokenSpeeds(50.0)}
        models = tuple(ModelState(model.request.name, "loaded", stages=stages, **speeds) for model in self.models)
        return ClusterState(version="0", protocol=1, workers=workers, models=models)

    def plan(
        self,
        wanted: LoadRequest,
        *,
        replaces: LoadedModel | None = None,
        idle: Sequence[LoadedModel] = (),
        busy: Sequence[LoadedModel] = (),
    ) -> Future[DryRun]:
        self.planned.append(wanted)
        self.could_go = (replaces, tuple(idle), tuple(busy))
        stage = PlannedStage("local", "whole", 0, 3, 1000, 2000, 3000, 7000, 16667.0)
        plans = (
            PlanState("this machine alone", True, "", (stage,), TokenSpeeds(60.0, 900.0), ("other",)),
            PlanState("10.0.0.1:50052", False, "too small"),
        )
        future: Future[DryRun] = Future()
        name = wanted.name
        in_thread(lambda: future.set_result(DryRun(name, wanted.num_ctx, 1, "fastest", plans, ("nobody listens",))))
        return future


def failed(error: OllamaZmqError) -> Future[LoadedModel]:
    future: Future[LoadedModel] = Future()
    in_thread(lambda: future.set_exception(error))
    return future


def loaded_model(wanted: LoadRequest, number: int, contexts: int = 4) -> LoadedModel:
    """What a load of *wanted* gives, with room for *contexts* if it says nothing; of the network the header is real."""
    with open_gguf(wanted.path) as gguf:
        tokenizer = load_tokenizer(gguf.metadata)
        metadata = {key: value for key, value in gguf.metadata.items() if isinstance(value, str)}
    network: Any = SimpleNamespace(gguf=SimpleNamespace(metadata=metadata))
    contexts = wanted.num_parallel or contexts
    return LoadedModel(
        number, wanted, network, tokenizer, wanted.num_ctx, contexts, size=1000, size_remote=0, load_s=0.125
    )


def in_thread(work: Callable[[], object]) -> None:
    """Do *work* in another thread and return when it is done, so that tests are deterministic."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
