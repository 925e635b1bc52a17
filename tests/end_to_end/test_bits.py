"""Split equals unsplit: the logits of 64 positions have the same bits however the work was cut.

A cut is how many layers each worker gets; memory limits with room for just that many leave the planner no other choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ollama_zmq.bus.broker import Broker
from ollama_zmq.bus.loads import LoadedModel, LoadRequest
from ollama_zmq.cli.children import Children
from ollama_zmq.cluster.placement import WEIGHT_HEADROOM
from ollama_zmq.cluster.stages import LoadOrder, demand_of
from ollama_zmq.engine.requests import (
    Finished,
    GenerationRequest,
    Output,
    RequestFailed,
    Scored,
    ScoreRequest,
    TextChunk,
)
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.formats.options import Options
from ollama_zmq.models.network import Network
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.models import Store

T = 64
CHUNKS = (1, 7, 64)
TINY_CUTS = ((8,), (1, 7), (4, 4), (7, 1), (2, 3, 3), (1, 1, 6))
SMOLLM2_CUTS = ((30,), (1, 29), (15, 15), (29, 1), (10, 10, 10), (3, 20, 7))
MEGABYTE = 1 << 20

Logits = np.ndarray[Any, np.dtype[np.float32]]
Workers = Callable[[Path, tuple[int, ...], int], tuple[str, ...]]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that workers and broker share, so that no weights are sent."""
    return Store(tmp_path_factory.mktemp("bits"))


@pytest.fixture(scope="module")
def workers(store: Store) -> Iterator[Workers]:
    """The addresses of workers with room for so many layers of a model each; none is started twice."""
    started: dict[tuple[int, int, int], str] = {}
    env = {"OLLAMA_MODELS": str(store.root)}
    with Children() as children:

        def addresses(path: Path, cut: tuple[int, ...], threads: int) -> tuple[str, ...]:
            limits = [room_mb(path, n_layers) for n_layers in cut]
            keys = [(threads, limit, limits[:i].count(limit)) for i, limit in enumerate(limits)]
            for key in keys:
                if key not in started:
                    started[key] = children.start_worker(threads=threads, memory_mb=key[1], env=env)
            return tuple(started[key] for key in keys)

        yield addresses


def room_mb(path: Path, n_layers: int) -> int:
    """The least whole number of MB in which the planner puts *n_layers* layers; one more layer takes over 1 MB."""
    with open_gguf(path) as gguf:
        order = LoadOrder(1, "", Network(gguf), "", (), num_ctx=T, num_parallel=1, max_tokens=T)
        demand = demand_of(order)
    weights = max(demand.layer_nbytes) * WEIGHT_HEADROOM
    return int(n_layers * (weights + demand.kv_nbytes) + demand.scratch_nbytes) // MEGABYTE + 1


def _stored(store: Store, name: str, gguf: Path) -> Path:
    store.create(name, Recipe(files={gguf.name: store.blobs.add_file(gguf).digest}))
    return store.get(name).gguf_path


@pytest.fixture(scope="module")
def tiny(store: Store, wide_gguf: Path) -> Path:
    """The tiny model's blob."""
    return _stored(store, "tiny", wide_gguf)


@pytest.fixture(scope="module")
def smollm2(store: Store, smollm2_path: Path) -> Path:
    """SmolLM2's blob."""
    return _stored(store, "smollm2", smollm2_path)


def _logits(broker: Broker, model: LoadedModel, chunk: int) -> Logits:
    token_ids = tuple(int(i) for i in np.random.default_rng(3).integers(0, model.network.vocab_size, T))
    answer: Future[Output] = Future()
    broker.submit(model, ScoreRequest(f"score-{chunk}", token_ids, chunk), answer.set_result)
    scored = answer.result(timeout=100)
    assert not isinstance(scored, RequestFailed), scored
    assert isinstance(scored, Scored)
    return scored.logits


def _run(path: Path, addresses: tuple[str, ...], threads: int) -> tuple[tuple[int, ...], list[Logits]]:
    """Where the workers' layers end, and the logits for each size of chunk."""
    request = LoadRequest(
        name=path.name, path=path, blob=path.name, num_ctx=T, rpc_servers=addresses, num_batch=T, num_thread=threads
    )
    with Broker(threads=threads) as broker:
        model = broker.load(request).result(timeout=100)
        (state,) = broker.cluster().models
        ends = tuple(stage.last_layer for stage in state.stages if stage.worker in addresses)
        return ends, [_logits(broker, model, chunk) for chunk in CHUNKS]


@pytest.fixture(scope="module")
def unsplit() -> Callable[[Path], Logits]:
    """The logits of a model on one device with one thread, in one pass."""
    known: dict[Path, Logits] = {}

    def logits(path: Path) -> Logits:
        if path not in known:
            known[path] = _run(path, (), 1)[1][-1]
        return known[path]

    return logits


def _assert_same_bits(found: list[Logits], expected: Logits) -> None:
    assert expected.shape[0] == T
    assert np.isfinite(expected).all()
    for chunk, logits in zip(CHUNKS, found, strict=True):
        differing = int((logits.view(np.uint32) != expected.view(np.uint32)).sum())
        assert (chunk, differing) == (chunk, 0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cut", TINY_CUTS, ids=str)
def test_the_bits_of_a_tiny_model_do_not_depend_on_the_cut(
    tiny: Path, workers: Workers, unsplit: Callable[[Path], Logits], cut: tuple[int, ...], threads: int
) -> None:
    ends, found = _run(tiny, workers(tiny, cut, threads), threads)
    assert ends == _ends(cut)
    _assert_same_bits(found, unsplit(tiny))


def test_threads_and_chunks_do_not_change_the_bits_of_one_device(tiny: Path, unsplit: Callable[[Path], Logits]) -> None:
    _assert_same_bits(_run(tiny, (), 2)[1], unsplit(tiny))


ALWAYS = (((29, 1), 2), ((10, 10, 10), 1))
SMOLLM2_CASES = [
    pytest.param(cut, threads, marks=[] if (cut, threads) in ALWAYS else [pytest.mark.full], id=f"{cut}-{threads}")
    for cut in SMOLLM2_CUTS
    for threads in (1, 2)
]


@pytest.mark.parametrize(("cut", "threads"), SMOLLM2_CASES)
def test_the_bits_of_smollm2_do_not_depend_on_the_cut(
    smollm2: Path, workers: Workers, unsplit: Callable[[Path], Logits], cut: tuple[int, ...], threads: int
) -> None:
    ends, found = _run(smollm2, workers(smollm2, cut, threads), threads)
    assert ends == _ends(cut)
    _assert_same_bits(found, unsplit(smollm2))


def _ends(cut: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(end - 1 for end in accumulate(cut))


SEVERAL = 6


def _answers(path: Path, addresses: tuple[str, ...], *, together: bool) -> list[tuple[tuple[int, ...], bytes]]:
    """What several requests generate, and the logits of as many others, all in flight at once or one by one."""
    groups = 3 if together else 1
    request = LoadRequest(
        path.name, path, T, path.name, addresses, num_batch=16, num_parallel=2 * SEVERAL, max_in_flight=groups
    )
    rng = np.random.default_rng(4)
    with Broker(threads=1) as broker:
        model = broker.load(request).result(timeout=100)
        prompts = [tuple(rng.integers(0, model.network.vocab_size, n).tolist()) for n in range(5, 5 + 7 * SEVERAL, 7)]
        waited: list[tuple[Future[Output], Future[Output]]] = []
        for i, prompt in enumerate(prompts):
            ends: tuple[Future[Output], Future[Output]] = (Future(), Future())
            options = Options(seed=i, num_predict=12)
            for request_, end in (
                (GenerationRequest(f"g{i}", prompt, options, shift=False, truncate=False), ends[0]),
                (ScoreRequest(f"s{i}", prompt, 7), ends[1]),
            ):
                broker.submit(model, request_, _last_into(end))
            if not together:
                ends[1].result(timeout=100)
                ends[0].result(timeout=100)
            waited.append(ends)
        return [_said(generated.result(timeout=100), scored.result(timeout=100)) for generated, scored in waited]


def _last_into(end: Future[Output]) -> Callable[[Output], None]:
    return lambda output: None if isinstance(output, TextChunk) else end.set_result(output)


def _said(generated: Output, scored: Output) -> tuple[tuple[int, ...], bytes]:
    assert isinstance(generated, Finished), generated
    assert isinstance(scored, Scored), scored
    return generated.context, scored.logits.tobytes()


def test_what_is_in_flight_together_does_not_change_the_bits(tiny: Path, workers: Workers) -> None:
    """Twelve requests in three microbatches at a time over three workers, against one after another on one device."""
    together = _answers(tiny, workers(tiny, (2, 3, 3), 1), together=True)
    assert together == _answers(tiny, (), together=False)
