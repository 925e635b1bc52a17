"""The broker with real sockets and real kernels, its workers in threads of this process."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import zmq

from ollama_zmq.bus.broker import Broker
from ollama_zmq.bus.loads import LoadedModel, LoadRequest
from ollama_zmq.bus.served import Served
from ollama_zmq.bus.sockets import bind, worker_socket
from ollama_zmq.bus.worker_loop import WorkerLoop
from ollama_zmq.cluster.events import ModelLoaded
from ollama_zmq.cluster.stages import Missing
from ollama_zmq.devices.base import Budget
from ollama_zmq.devices.registry import open_device
from ollama_zmq.engine.engine import Engine
from ollama_zmq.engine.requests import (
    Finished,
    GenerationRequest,
    Output,
    Request,
    RequestFailed,
    Scored,
    ScoreRequest,
    TextChunk,
)
from ollama_zmq.errors import (
    MemoryInUse,
    ModelFileError,
    OpError,
    OutOfDeviceMemory,
    RequestError,
    StageLost,
    Unreachable,
)
from ollama_zmq.formats.options import Options
from ollama_zmq.models.llama import Llama
from ollama_zmq.models.network import Network
from ollama_zmq.wire import frames
from ollama_zmq.wire.frames import START, Envelope
from ollama_zmq.wire.messages import Define, Hello, Ping, Pong
from tests.cluster.fake_workers import welcome
from tests.models_tiny import write_tiny_llama

WAIT_S = 60.0
GREEDY = Options(temperature=0.0, num_predict=12)
PROMPT = tuple(range(3, 43))


class RunningWorker:
    """A worker in a thread; it can be stopped and started again at the same port."""

    def __init__(self, memory: int = 1 << 30, port: str = "*") -> None:
        self._memory = memory
        self.start(port)

    def start(self, port: str) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._device = open_device("cpu", threads=1, budget=Budget(self._memory))
        self._loop = WorkerLoop(
            self._context, f"tcp://127.0.0.1:{port}", self._device, name="w", find_blob=lambda _: None, zap=True
        )
        self.address = self._loop.bound_endpoint.removeprefix("tcp://")
        self._thread = threading.Thread(target=self._loop.run)
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.stop()
            self._thread.join(WAIT_S)
            self._device.close()
            self._context.destroy(linger=0)


@pytest.fixture
def start_worker() -> Iterator[Callable[..., RunningWorker]]:
    workers: list[RunningWorker] = []

    def start(**options: Any) -> RunningWorker:
        workers.append(RunningWorker(**options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker(threads=1) as running:
        yield running


@dataclass
class Loaded:
    """A model and the broker that has it."""

    broker: Broker
    model: LoadedModel


def load(broker: Broker, path: Path, *workers: RunningWorker, before: Loaded | None = None, num_ctx=128) -> Loaded:
    """Load the model of *path*, in the place of the one *before*, over *workers* and nobody else."""
    request = LoadRequest("tiny", path, num_ctx, rpc_servers=tuple(w.address for w in workers))
    loading = broker.load(request, replaces=before.model if before else None)
    loaded = loading.result(WAIT_S)
    assert workers or not loaded.size_remote
    return Loaded(broker, loaded)


def outputs_of(loaded: Loaded, request: Request) -> Iterator[Output]:
    """Outputs of *request* until it has ended."""
    arrived: queue.Queue[Output] = queue.Queue()
    loaded.broker.submit(loaded.model, request, arrived.put)
    while True:
        output = arrived.get(timeout=WAIT_S)
        yield output
        if not isinstance(output, TextChunk):
            return


def score(loaded: Loaded, chunk: int = 64) -> np.ndarray:
    (scored,) = outputs_of(loaded, ScoreRequest("score", PROMPT, chunk))
    assert isinstance(scored, Scored)
    return scored.logits


def generate(loaded: Loaded, request_id: str = "g") -> tuple[str, Output]:
    *pieces, last = outputs_of(loaded, GenerationRequest(request_id, PROMPT, GREEDY))
    return "".join(piece.text for piece in pieces), last


def workers_of(broker: Broker) -> set[str]:
    return {stage.worker for model in broker.cluster().models for stage in model.stages}


def test_split_equals_unsplit_whatever_the_cut_and_the_chunk(broker, tiny_gguf, start_worker):
    loaded = load(broker, tiny_gguf)
    unsplit = score(loaded)
    workers = [start_worker() for _ in range(3)]
    for n in (1, 2, 3):
        loaded = load(broker, tiny_gguf, *workers[:n], before=loaded)
        assert workers_of(broker) == {"local", *(worker.address for worker in workers[:n])}
        for chunk in (1, 7, 64):
            assert np.array_equal(score(loaded, chunk), unsplit), (n, chunk)


def test_what_follows_the_lookup_is_done_over_workers_too(broker, tiny_gguf, start_worker, monkeypatch):
    """As in an architecture that scales its embedding."""
    plain = score(load(broker, tiny_gguf))
    monkeypatch.setattr(Llama, "enter", lambda self, ops, hidden_state, given: ops.add(hidden_state, hidden_state))
    loaded = load(broker, tiny_gguf)
    unsplit = score(loaded)
    assert not np.allclose(unsplit, plain, rtol=0.01)
    split = load(broker, tiny_gguf, start_worker(), start_worker(), before=loaded)
    assert split.model.size_remote > 0
    assert np.array_equal(score(split), unsplit)


@pytest.mark.parametrize(("num_parallel", "contexts"), [(0, 4), (1, 1), (3, 3)])
def test_a_model_says_how_many_contexts_it_has_room_for(broker, tiny_gguf, num_parallel, contexts):
    loading = broker.load(LoadRequest("tiny", tiny_gguf, 128, num_parallel=num_parallel))
    assert loading.result(WAIT_S).contexts == contexts


def test_generation_over_workers_is_what_it_is_here(broker, tiny_gguf, start_worker):
    alone = generate(load(broker, tiny_gguf))
    split = load(broker, tiny_gguf, start_worker(), start_worker())
    assert split.model.size_remote > 0
    text, last = generate(split)
    assert isinstance(last, Finished)
    assert (text, last.context) == (alone[0], alone[1].context)
    assert (last.prompt_tokens, last.output_tokens) == (len(PROMPT), 12)


def test_a_request_waits_for_its_reader_and_another_for_neither(broker, tiny_gguf):
    loaded, arrived = load(broker, tiny_gguf), queue.Queue()
    expected = generate(loaded)[0]
    broker.submit(loaded.model, GenerationRequest("slow", PROMPT, GREEDY, read_ahead=2), arrived.put)
    assert generate(loaded, "other")[0] == expected
    text, outputs = "", arrived.qsize()
    assert outputs >= 2
    while isinstance(output := arrived.get(timeout=WAIT_S), TextChunk):
        text += output.text
        outputs -= 1
        broker.read("slow", 1)
    assert outputs < 0  # its end had not come before it was read
    assert text == expected


def test_models_of_one_shape_answer_side_by_side_over_one_worker(broker, tiny_gguf, tmp_path, start_worker):
    """Their programs are made of the same ops; their weights, caches and requests must not be mixed up."""
    paths = tiny_gguf, write_tiny_llama(tmp_path / "other.gguf", n_layers=4, seed=2)
    alone = [score(load(broker, path)) for path in paths]
    assert not np.array_equal(*alone)
    worker = start_worker()
    loaded = [load(broker, path, worker) for path in paths]
    assert all(model.model.size_remote > 0 for model in loaded)
    for _ in range(2):
        assert all(np.array_equal(score(model), bits) for model, bits in zip(loaded, alone, strict=True))
    broker.unload(loaded[0].model).result(WAIT_S)
    assert np.array_equal(score(loaded[1]), alone[1])


def test_a_worker_that_dies_ends_only_the_models_that_used_it(broker, tiny_gguf, start_worker):
    doomed, other = start_worker(), start_worker()
    lost, kept = load(broker, tiny_gguf, doomed), load(broker, tiny_gguf, other)
    assert workers_of(broker) == {"local", doomed.address, other.address}
    expected = generate(kept)
    arrived = outputs_of(lost, GenerationRequest("long", PROMPT, Options(temperature=0.0, num_predict=100_000)))
    next(arrived)
    doomed.stop()
    *_, last = arrived
    assert isinstance(last.error, StageLost)
    assert generate(kept)[0] == expected[0]


def test_what_fits_only_without_others_names_them(tiny_gguf, start_worker):
    with Broker(threads=1, memory_limit=3_500_000) as broker:
        first = load(broker, tiny_gguf)
        wanted = LoadRequest("again", tiny_gguf, 128)
        with pytest.raises(MemoryInUse) as caught:
            broker.load(wanted, idle=[first.model]).result(WAIT_S)
        assert caught.value.facts == {"models": {first.model.number}}
        for could_go, unloads in (((), ()), ((first.model,), ("tiny",))):
            (planned, *_) = broker.plan(wanted, idle=could_go).result(WAIT_S).plans
            assert (planned.unloads, bool(planned.error)) == (unloads, not could_go)
        broker.unload(first.model).result(WAIT_S)
        assert broker.load(wanted).result(WAIT_S).size > 1_250_000


def test_a_dry_run_predicts_what_a_load_then_does(broker, tiny_gguf, start_worker):
    workers = start_worker(), start_worker(memory=1000)
    before = load(broker, tiny_gguf, *workers)  # what is leased for it is not measured again
    wanted = LoadRequest("tiny", tiny_gguf, 64, rpc_servers=tuple(worker.address for worker in workers))
    found = broker.plan(wanted, replaces=before.model).result(WAIT_S)
    assert (len(broker.cluster().models), found.missing, len(found.plans)) == (1, (), 5)
    (planned,) = [plan for plan in found.plans if plan.chosen]
    loaded = load(broker, tiny_gguf, *workers, before=before, num_ctx=64)
    generate(loaded)
    (model,) = broker.cluster().models
    assert [(s.worker, s.part, s.last_layer) for s in planned.stages] == [
        (s.worker, s.part, s.last_layer) for s in model.stages
    ]
    assert model.predicted.prefill_tokens_per_s == planned.predicted.prefill_tokens_per_s
    assert model.measured.decode_tokens_per_s > 0


def test_a_dry_run_gives_its_workers_back(broker, tiny_gguf, start_worker):
    worker = start_worker()
    wanted = LoadRequest("tiny", tiny_gguf, 128, rpc_servers=(worker.address,))
    for _ in range(2):
        assert broker.plan(wanted).result(WAIT_S).missing == ()
        assert [seen.address for seen in broker.cluster().workers] == ["local"]
    with Broker(threads=1) as other:
        assert load(other, tiny_gguf, worker).model.size_remote > 0


def test_a_dry_run_leaves_alone_what_a_model_uses(broker, tiny_gguf, start_worker):
    used, other = start_worker(), start_worker()
    loaded = load(broker, tiny_gguf, used)
    broker.plan(LoadRequest("tiny", tiny_gguf, 128, rpc_servers=(other.address,))).result(WAIT_S)
    assert {seen.address for seen in broker.cluster().workers} == {"local", used.address}
    generate(loaded)


def test_a_dry_run_tells_who_is_not_there(broker, tiny_gguf):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        found = broker.plan(LoadRequest("tiny", tiny_gguf, 128, rpc_servers=(address,))).result(WAIT_S)
    assert found.missing == (f"nobody listens at {address}: start `ollama rpc-server` there, or take it off the list",)
    assert [plan.name for plan in found.plans] == ["this machine alone"]


def test_a_load_that_no_engine_can_serve_fails_and_leaves_nothing(broker, tiny_gguf):
    with pytest.raises(OpError, match="at least 2 slots"):
        load(broker, tiny_gguf, num_ctx=1)
    assert broker.cluster().models == ()


def test_sizes_count_what_the_workers_hold(broker, tiny_gguf, start_worker):
    loaded = load(broker, tiny_gguf, start_worker()).model
    assert 0 < loaded.size_remote < loaded.size


def test_the_state_tells_where_the_layers_are(broker, tiny_gguf, start_worker):
    worker = start_worker()
    generate(load(broker, tiny_gguf, worker))
    state = broker.cluster()
    (model,) = state.models
    assert [(s.worker, s.part) for s in model.stages] == [(worker.address, "layers"), ("local", "head")]
    assert model.stages[0].latency is not None
    assert [w.status for w in state.workers] == ["ready", "ready"]


def test_a_worker_that_dies_ends_the_request_and_the_next_runs_on_what_is_left(broker, tiny_gguf, start_worker):
    doomed, other = start_worker(), start_worker()
    loaded = load(broker, tiny_gguf, doomed, other)
    expected = generate(loaded)[0]
    arrived = outputs_of(loaded, GenerationRequest("long", PROMPT, Options(temperature=0.0, num_predict=100_000)))
    next(arrived)
    doomed.stop()
    *_, last = arrived
    assert isinstance(last, RequestFailed)
    assert isinstance(last.error, StageLost)
    assert doomed.address in str(last.error)

    loaded = load(broker, tiny_gguf, doomed, other)
    assert workers_of(broker) == {"local", other.address}
    assert generate(loaded)[0] == expected


def test_a_worker_that_returns_is_used_again(broker, tiny_gguf, start_worker):
    worker = start_worker()
    expected = generate(load(broker, tiny_gguf, worker))[0]
    worker.stop()
    worker.start(worker.address.rpartition(":")[2])
    loaded = load(broker, tiny_gguf, worker)
    assert workers_of(broker) == {"local", worker.address}
    assert generate(loaded)[0] == expected


def refused_over(broker: Broker, path: Path, address: str) -> str:
    """Why a load that refuses to go on without it fails over the worker at *address*."""
    wanted = LoadRequest("tiny", path, 128, rpc_servers=(address,), missing=Missing.REFUSE)
    with pytest.raises(Unreachable) as caught:
        broker.load(wanted).result(WAIT_S)
    return str(caught.value)


def test_a_worker_logs_on_which_machine_the_server_is_that_uses_it(broker, tiny_gguf, start_worker):
    with structlog.testing.capture_logs() as logs:
        load(broker, tiny_gguf, start_worker())
    leased = [log for log in logs if log["event"] == "broker.leased" and log["address"] != "this process"]
    assert [log["address"] for log in leased] == ["127.0.0.1"]


def test_a_second_broker_is_told_that_the_worker_is_leased(broker, tiny_gguf, start_worker):
    worker = start_worker()
    loaded = load(broker, tiny_gguf, worker)
    with Broker(threads=1) as second:
        assert "is in use by another server" in refused_over(second, tiny_gguf, worker.address)
        here = load(second, tiny_gguf, worker)
        assert (here.model.size_remote, generate(here)[0]) == (0, generate(loaded)[0])
    assert isinstance(generate(loaded)[1], Finished)


def test_a_broker_without_a_model_gives_its_workers_back(broker, tiny_gguf, start_worker):
    worker = start_worker()
    loaded = load(broker, tiny_gguf, worker)
    broker.unload(loaded.model).result(WAIT_S)
    with Broker(threads=1) as second:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            other = load(second, tiny_gguf, worker)
            if other.model.size_remote:
                return
            second.unload(other.model).result(WAIT_S)
    raise AssertionError("the worker is still leased")


def test_the_first_load_goes_over_the_workers_that_are_there(broker, tiny_gguf, start_worker):
    """Beside them a port where nobody listens, one that takes connections and says nothing, and an unknown name."""
    alone = generate(load(broker, tiny_gguf))[0]
    first, second = start_worker(), start_worker()
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        others = [f"127.0.0.1:{each.getsockname()[1]}" for each in (silent, unused)] + ["no-such-host.invalid:1"]
        servers = (others[0], first.address, others[1], second.address, others[2])
        model = broker.load(LoadRequest("again", tiny_gguf, 128, rpc_servers=servers)).result(WAIT_S)
    assert generate(Loaded(broker, model))[0] == alone
    (state,) = [model for model in broker.cluster().models if model.name == "again"]
    assert [stage.worker for stage in state.stages] == [first.address, second.address, "local"]
    assert len(state.missing) == 3
    assert all(any(address in why for why in state.missing) for address in others)


def test_a_worker_under_two_names_is_one_worker(broker, tiny_gguf, start_worker):
    worker = start_worker()
    other = "localhost:" + worker.address.rpartition(":")[2]
    loaded = load(broker, tiny_gguf, worker)
    wanted = LoadRequest("tiny", tiny_gguf, 128, rpc_servers=(other, worker.address))
    model = broker.load(wanted, replaces=loaded.model).result(WAIT_S)
    assert model.size_remote > 0
    assert workers_of(broker) == {"local", worker.address}


def test_a_load_that_is_canceled_is_dropped_and_leaves_nothing(broker, tiny_gguf):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        wanted = LoadRequest("tiny", tiny_gguf, 128, rpc_servers=(address,), missing=Missing.WAIT)
        loading = broker.load(wanted)
        assert isinstance(generate(load(broker, tiny_gguf))[1], Finished)  # another load does not wait for it
        assert loading.cancel()
        assert len(broker.cluster().models) == 1


def test_who_of_a_list_is_there_is_found_out_and_logged_without_a_lease(broker, start_worker):
    worker = start_worker()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{unused.getsockname()[1]}"
        listed = (nobody, worker.address)
        assert [seen.status for seen in broker.cluster(listed).workers[1:]] == ["not tried", "not tried"]
        with structlog.testing.capture_logs() as logs:
            broker.look(listed).result(WAIT_S)
    absent, idle = broker.cluster(listed).workers[1:]
    assert (absent.status, absent.detail[:14]) == ("lost", "nobody listens")
    assert (idle.status, idle.detail) == ("idle", "")
    told = [(log["worker"], log["reason"]) for log in logs if log["event"] == "worker.absent"]
    assert told == [(nobody, absent.detail)]
    assert "broker.leased" not in {log["event"] for log in logs}


def test_looking_at_the_cluster_connects_nobody(broker, start_worker):
    worker = start_worker()
    broker.look((worker.address,)).result(WAIT_S)
    state = broker.cluster((worker.address, "no-such-host.invalid:50052"))
    _, idle, unknown = state.workers
    assert (idle.address, idle.status, idle.detail) == (worker.address, "idle", "")
    assert (unknown.status, unknown.detail[:30]) == ("lost", "cannot resolve worker no-such-")


def test_a_closed_broker_gives_its_workers_back(tiny_gguf, start_worker):
    worker = start_worker()
    for _ in range(2):
        with Broker(threads=1) as broker:
            assert load(broker, tiny_gguf, worker).model.size_remote > 0


def test_nobody_at_the_address_is_said_so(broker, tiny_gguf):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        why = refused_over(broker, tiny_gguf, address)
    assert why.startswith(f"nobody listens at {address}: start `ollama rpc-server` there")


def test_somebody_else_at_the_address_is_said_so(broker, tiny_gguf):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_like_http() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(64)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer_like_http)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        why = refused_over(broker, tiny_gguf, address)
        thread.join(WAIT_S)
    assert why.startswith(f"{address} answers, but not as an ollama-zmq worker")


def test_a_name_without_an_address_is_said_so(broker, tiny_gguf):
    why = refused_over(broker, tiny_gguf, "no-such-host.invalid:50052")
    assert why.startswith("cannot resolve worker no-such-host.invalid:50052")


def test_a_worker_that_is_too_small_is_planned_around(broker, tiny_gguf, start_worker):
    loaded = load(broker, tiny_gguf, start_worker(memory=1000))
    assert loaded.model.size_remote == 0
    assert isinstance(generate(loaded)[1], Finished)


def test_what_fits_nowhere_is_refused_with_the_need(tiny_gguf, start_worker):
    with Broker(threads=1, memory_limit=10_000) as broker, pytest.raises(OutOfDeviceMemory, match="need"):
        load(broker, tiny_gguf, start_worker(memory=1000))


def test_a_file_that_is_no_model_leaves_the_broker_alive(broker, tiny_gguf, tmp_path):
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"no model at all")
    with pytest.raises(ModelFileError, match=r"wrong\.gguf"):
        load(broker, wrong)
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        load(broker, tmp_path / "absent.gguf")
    assert isinstance(generate(load(broker, tiny_gguf))[1], Finished)


def test_unloading_ends_what_runs_and_what_comes_late_is_refused(broker, tiny_gguf):
    loaded = load(broker, tiny_gguf)
    arrived = outputs_of(loaded, GenerationRequest("long", PROMPT, Options(temperature=0.0, num_predict=100_000)))
    next(arrived)
    broker.unload(loaded.model).result(WAIT_S)
    *_, last = arrived
    assert str(last.error) == "the model was unloaded"
    assert not broker.holds(loaded.model)
    (late,) = outputs_of(loaded, ScoreRequest("late", (1,)))
    assert str(late.error) == "model 'tiny' is not loaded any more"


def test_a_canceled_request_ends_and_the_next_one_runs(broker, tiny_gguf):
    loaded = load(broker, tiny_gguf)
    arrived = outputs_of(loaded, GenerationRequest("long", PROMPT, Options(temperature=0.0, num_predict=100_000)))
    next(arrived)
    broker.cancel("long")
    *_, last = arrived
    assert str(last.error) == "request canceled"
    assert isinstance(generate(loaded)[1], Finished)


def test_a_fault_of_our_own_ends_the_request_and_not_the_broker(broker, tiny_gguf, monkeypatch):
    loaded = load(broker, tiny_gguf)

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "complete", fails)
        assert str(generate(loaded)[1].error) == "internal error in the broker, see its log"
    assert not broker.holds(loaded.model)
    assert isinstance(generate(load(broker, tiny_gguf))[1], Finished)


class Rogue:
    """A worker that joins like any other and sends *rubbish* in place of its answer to the first ``define``."""

    def __init__(self, rubbish: list[bytes]) -> None:
        self._rubbish = rubbish
        self._context: zmq.Context[Any] = zmq.Context()
        self._dealer = worker_socket(self._context, "tcp://127.0.0.1:*")
        self.address = bind(self._dealer, "tcp://127.0.0.1:*").removeprefix("tcp://")
        self._running = True
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        seq = 0
        while self._running:
            if not self._dealer.poll(50):
                continue
            envelope = frames.decode(self._dealer.recv_multipart())
            self.asked.append(type(envelope.message).__name__)
            match envelope.message:
                case Hello():
                    answer, tensors = welcome(), {}
                case Ping(nonce):
                    answer, tensors = Pong(nonce), dict(envelope.tensors)
                case Define():
                    self._dealer.send_multipart(self._rubbish)
                    continue
                case _:
                    continue
            self._dealer.send_multipart(frames.encode(Envelope(answer, tensors, envelope.epoch, seq)))
            seq += 1

    def stop(self) -> None:
        self._running = False
        self._thread.join(WAIT_S)
        self._dealer.close(0)
        self._context.term()


@pytest.fixture
def rogue() -> Iterator[Callable[[list[bytes]], Rogue]]:
    running: list[Rogue] = []

    def start(rubbish: list[bytes]) -> Rogue:
        running.append(Rogue(rubbish))
        return running[-1]

    yield start
    for each in running:
        each.stop()


@pytest.mark.parametrize("rubbish", [[b"rubbish"], [b""], [START + b"\xff\xff\xff\xff"], [b"x"] * 50])
def test_rubbish_from_a_worker_costs_it_the_connection_and_the_load_goes_on(
    broker, tiny_gguf, start_worker, rogue, rubbish
):
    """It would join again at once and send the same; the load that it spoilt goes on without it."""
    alone = generate(load(broker, tiny_gguf))[0]
    honest, liar = start_worker(), rogue(rubbish)
    wanted = LoadRequest("tiny", tiny_gguf, 128, rpc_servers=(honest.address, liar.address))
    model = broker.load(wanted).result(WAIT_S)
    assert generate(Loaded(broker, model))[0] == alone
    assert liar.asked.count("Define") <= 2  # once more, for it might have been started anew in between
    (state,) = [state for state in broker.cluster().models if state.stages[0].worker == honest.address]
    (why,) = state.missing
    assert liar.address in why
    assert "protocol" in why


def test_a_broker_that_stops_ends_the_looks_that_are_under_way(tiny_gguf):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        wanted = LoadRequest("tiny", tiny_gguf, 128, rpc_servers=(f"127.0.0.1:{silent.getsockname()[1]}",))
        with Broker(threads=1) as broker:
            silent.settimeout(WAIT_S)
            planned = broker.plan(wanted)
            silent.accept()[0].close()  # it is being looked at
        with pytest.raises(RequestError, match="the server is stopping"):
            planned.result(WAIT_S)


@pytest.fixture
def halt(broker) -> Iterator[Callable[[], threading.Event]]:
    """Makes the broker's thread wait for an event."""
    events: list[threading.Event] = []

    def wait() -> threading.Event:
        events.append(threading.Event())
        broker._loop.call(lambda: events[-1].wait(WAIT_S) and None)
        return events[-1]

    yield wait
    for event in events:
        event.set()


def test_an_answer_that_nobody_waits_for_any_more_harms_nobody(broker, tiny_gguf, halt):
    """A client may go while the broker is busy; asyncio cancels the future then."""
    kept, gone = load(broker, tiny_gguf), load(broker, tiny_gguf)
    free = halt()
    unloading = broker.unload(gone.model)
    assert unloading.cancel()
    free.set()
    assert isinstance(generate(kept)[1], Finished)
    assert (broker.holds(kept.model), broker.holds(gone.model)) == (True, False)


def test_a_broker_that_does_not_answer_in_time_is_said_so(broker, tiny_gguf, halt, monkeypatch):
    monkeypatch.setattr("ollama_zmq.bus.broker.ASK_LIMIT_S", 0.01)
    halt()
    with pytest.raises(OpError, match=r"the broker did not answer within 0\.01 s"):
        broker.plan(LoadRequest("tiny", tiny_gguf, 128)).result(WAIT_S)


def test_a_fault_of_our_own_ends_the_looks_that_are_under_way(broker, tiny_gguf):
    def fails() -> None:
        raise ZeroDivisionError

    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(WAIT_S)
        wanted = LoadRequest("tiny", tiny_gguf, 128, rpc_servers=(f"127.0.0.1:{silent.getsockname()[1]}",))
        planned = broker.plan(wanted)
        with silent.accept()[0]:
            broker._loop.call(fails)
            with pytest.raises(OpError, match="internal error in the broker"):
                planned.result(WAIT_S)
    assert isinstance(generate(load(broker, tiny_gguf))[1], Finished)


def test_a_file_that_goes_amid_a_load_is_named(broker, tiny_gguf, tmp_path, monkeypatch):
    there = tmp_path / "there.gguf"
    there.write_bytes(tiny_gguf.read_bytes())
    original = Network.__init__

    def unlink_first(self: Network, *args: Any) -> None:
        original(self, *args)
        there.unlink()

    monkeypatch.setattr(Network, "__init__", unlink_first)
    with pytest.raises(ModelFileError, match=r"there\.gguf: cannot be read: No such file"):
        load(broker, there)


def test_a_second_end_of_a_load_changes_nothing(broker, tiny_gguf, monkeypatch):
    """Of whatever made it: the model answers on, and nothing is raised in the broker's thread."""
    finish = Served.finish

    def twice(self: Served, loaded: ModelLoaded) -> None:
        finish(self, loaded)
        finish(self, loaded)

    monkeypatch.setattr(Served, "finish", twice)
    loaded = load(broker, tiny_gguf)
    assert isinstance(generate(loaded)[1], Finished)
    assert broker.holds(loaded.model)
