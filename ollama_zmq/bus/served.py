"""The models of a broker, from the moment their load begins: their files, their engines, and who waits for what.

Changed in the broker's thread only. Whether a model is there, and where its file is, any thread may ask at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import structlog

from ollama_zmq.bus.futures import settle
from ollama_zmq.bus.loads import LoadedModel, LoadRequest, Numbers, order_of
from ollama_zmq.cluster.events import ModelLoaded
from ollama_zmq.cluster.stages import LOCAL, NO_MODEL, LoadOrder
from ollama_zmq.cluster.state import NO_USE, UseState
from ollama_zmq.engine.embedding import Embedding
from ollama_zmq.engine.engine import Engine
from ollama_zmq.engine.pages import pages_for
from ollama_zmq.engine.requests import Finished, Output, RequestFailed, Scored
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.formats.gguf import GgufFile, open_gguf
from ollama_zmq.models.network import Network
from ollama_zmq.text.tokenizer import Tokenizer, has_vocabulary, load_tokenizer

log = structlog.get_logger()
OnOutput = Callable[[Output], None]


@dataclass(slots=True)
class Load:
    """A load on its way, and who waits for it.

    Attributes:
        future: what it ends with.
        started: when it was asked for, by the monotonic clock.
    """

    future: Future[LoadedModel]
    started: float

    def end(self, outcome: LoadedModel | OllamaZmqError) -> None:
        """Tell who waits, unless he has cancelled or was told already."""
        settle(self.future, outcome)


@dataclass(slots=True)
class Served:
    """A model that is loaded or being loaded.

    Attributes:
        gguf: where chunks of its weights are read from.
        embedding: None when token ids go to its first stage.
        engine, loaded: None while it is being loaded.
    """

    request: LoadRequest
    gguf: GgufFile
    network: Network
    tokenizer: Tokenizer | None
    embedding: Embedding | None
    order: LoadOrder
    load: Load
    engine: Engine | None = None
    loaded: LoadedModel | None = None

    @classmethod
    def open(cls, wanted: LoadRequest, numbers: Numbers, load: Load) -> Served:
        """Open the file of *wanted*; takes a while.

        Raises:
            ModelFileError: it is no model, or one of an architecture that is not known.
        """
        gguf = open_gguf(wanted.path)
        try:
            network = Network(gguf, wanted.kv_type, wanted.num_ctx)
            gguf = network.gguf
            tokenizer = load_tokenizer(gguf.metadata) if has_vocabulary(gguf.metadata) else None
            embedding = Embedding(gguf) if wanted.rpc_servers else None
            if network.skipped:
                log.info("tensors.skipped", model=wanted.name, tensors=len(network.skipped), first=network.skipped[0])
        except OllamaZmqError:
            gguf.close()
            raise
        return cls(wanted, gguf, network, tokenizer, embedding, order_of(wanted, network, numbers), load)

    def finish(self, loaded: ModelLoaded) -> None:
        """Begin to answer; who waits for the load is told.

        Raises:
            OpError: no engine can serve a model with such limits.
        """
        self.engine = self._engine(loaded)
        if loaded.is_whole:
            self.embedding = None
        self.loaded = LoadedModel(
            number=loaded.model,
            request=self.request,
            network=self.network,
            tokenizer=self.tokenizer,
            num_ctx=self.order.num_ctx,
            contexts=loaded.kv_pages // pages_for(self.order.num_ctx),
            size=sum(loaded.held.values()),
            size_remote=sum(nbytes for address, nbytes in loaded.held.items() if address != LOCAL),
            load_s=time.monotonic() - self.load.started,
        )
        self.load.end(self.loaded)

    @property
    def use(self) -> UseState:
        """How much it is used."""
        if (engine := self.engine) is None:
            return NO_USE
        return UseState(engine.running, engine.waiting, engine.in_flight, engine.free_pages)

    def _engine(self, loaded: ModelLoaded) -> Engine:
        return Engine(
            tokenizer=self.tokenizer,
            vocab_size=self.network.vocab_size,
            num_ctx=self.order.num_ctx,
            kv_pages=loaded.kv_pages,
            max_tokens=self.order.max_tokens,
            max_rows=self.order.max_rows,
            max_sequences=self.order.max_sequences,
            stages=loaded.costs,
            max_in_flight=self.request.max_in_flight,
            speculate=self.request.speculate,
        )


class ServedModels(Mapping[int, Served]):
    """Model number -> model, and who listens to the outputs of their requests."""

    def __init__(self) -> None:
        self._models: dict[int, Served] = {}
        self._listeners: dict[str, tuple[int, OnOutput]] = {}

    def __getitem__(self, number: int) -> Served:
        return self._models[number]

    def __iter__(self) -> Iterator[int]:
        """The numbers at this moment; models may come and go meanwhile."""
        return iter(list(self._models))

    def __len__(self) -> int:
        return len(self._models)

    def add(self, served: Served) -> None:
        """Take in a model whose load begins."""
        self._models[served.order.model] = served

    def engine(self, number: int) -> Engine | None:
        """What runs the requests of a model; None unless it is loaded."""
        served = self._models.get(number)
        return served.engine if served is not None else None

    def listen(self, request_id: str, number: int, on_output: OnOutput) -> None:
        """Hand every output of a request to *on_output*, until it has ended."""
        self._listeners[request_id] = number, on_output

    def engine_of(self, request_id: str) -> Engine | None:
        """The engine at work on a request; None when that is done."""
        number, _ = self._listeners.get(request_id, (NO_MODEL, None))
        return self.engine(number)

    def deliver(self, outputs: Iterable[Output]) -> None:
        """Hand *outputs* to who listens for them."""
        for output in outputs:
            ended = isinstance(output, Finished | Scored | RequestFailed)
            request_id = output.request_id
            listener = self._listeners.pop(request_id, None) if ended else self._listeners.get(request_id)
            if listener is not None:
                listener[1](output)

    def forget(self, number: int, error: OllamaZmqError) -> None:
        """Drop a model; whoever still waits for it or for its answers is told *error*."""
        served = self._models.pop(number, None)
        if served is not None and served.loaded is None:
            served.load.end(error)
        unanswered = [request_id for request_id, (user, _) in self._listeners.items() if user == number]
        self.deliver(RequestFailed(request_id, error) for request_id in unanswered)

    def file(self, blob: str) -> Path | None:
        """The model file that is called *blob* here, if one of the models has it."""
        here = (served.request.path for served in list(self._models.values()) if served.order.blob == blob)
        return next(here, None)
