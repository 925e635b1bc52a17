"""Split equals unsplit: the logits of 64 positions have the same bits however the work was cut.

A worker with a memory limit takes fewer layers, so each row of CUTS puts the borders between stages elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ollama_zmq.bus.broker import Broker, LoadRequest
from ollama_zmq.cli.children import Children
from ollama_zmq.engine.requests import Broken, Output, Scored, ScoreRequest
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.models import Store

T = 64
CHUNKS = (1, 7, 64)
CUTS = {  # memory limits of the workers in order: none, small, or middling
    "one": ("none",),
    "two": ("none", "none"),
    "two, small first": ("small", "none"),
    "two, small last": ("none", "small"),
    "three": ("none", "none", "none"),
    "three, rising": ("small", "middling", "none"),
}
TINY_LIMITS_MB = {"none": 0, "small": 12, "middling": 16}
SMOLLM2_LIMITS_MB = {"none": 0, "small": 24, "middling": 40}

Logits = np.ndarray[Any, np.dtype[np.float32]]
Workers = Callable[[tuple[str, ...], int, dict[str, int]], tuple[str, ...]]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that workers and broker share, so that no weights are sent."""
    return Store(tmp_path_factory.mktemp("bits"))


@pytest.fixture(scope="module")
def workers(store: Store) -> Iterator[Workers]:
    """The addresses of workers with the limits and threads asked for; each is started once."""
    started: dict[tuple[int, int, int], str] = {}
    with Children() as children:

        def addresses(limits: tuple[str, ...], threads: int, megabytes: dict[str, int]) -> tuple[str, ...]:
            keys = [(threads, megabytes[limit], limits[:i].count(limit)) for i, limit in enumerate(limits)]
            for key in keys:
                if key not in started:
                    started[key] = children.start_worker(
                        threads=threads, memory_mb=key[1], env={"OLLAMA_MODELS": str(store.root)}
                    )
            return tuple(started[key] for key in keys)

        yield addresses


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


def _logits(broker: Broker, vocab_size: int, chunk: int) -> Logits:
    token_ids = tuple(int(i) for i in np.random.default_rng(3).integers(0, vocab_size, T))
    answer: Future[Output] = Future()
    broker.submit(ScoreRequest(f"score-{chunk}", token_ids, chunk), answer.set_result)
    scored = answer.result(timeout=100)
    assert not isinstance(scored, Broken), scored
    assert isinstance(scored, Scored)
    return scored.logits


def _run(path: Path, addresses: tuple[str, ...], threads: int) -> tuple[tuple[int, ...], list[Logits]]:
    """Where the workers' layers end, and the logits for each size of chunk."""
    request = LoadRequest(
        name=path.name, path=path, blob=path.name, num_ctx=T, rpc_servers=addresses, num_batch=T, num_thread=threads
    )
    with Broker(threads=threads) as broker:
        vocab_size = broker.load(request).result(timeout=100).network.vocab_size
        ends = tuple(stage.last_layer for stage in broker.cluster().stages if stage.worker in addresses)
        return ends, [_logits(broker, vocab_size, chunk) for chunk in CHUNKS]


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
@pytest.mark.parametrize("cut", CUTS)
def test_the_bits_of_a_tiny_model_do_not_depend_on_the_cut(
    tiny: Path, workers: Workers, unsplit: Callable[[Path], Logits], cut: str, threads: int
) -> None:
    ends, found = _run(tiny, workers(CUTS[cut], threads, TINY_LIMITS_MB), threads)
    assert len(ends) == len(CUTS[cut])
    _assert_same_bits(found, unsplit(tiny))


def test_threads_and_chunks_do_not_change_the_bits_of_one_device(tiny: Path, unsplit: Callable[[Path], Logits]) -> None:
    _assert_same_bits(_run(tiny, (), 2)[1], unsplit(tiny))


def test_memory_limits_move_the_cut(tiny: Path, workers: Workers) -> None:
    ends = [_run(tiny, workers(CUTS[cut], 1, TINY_LIMITS_MB), 1)[0] for cut in ("two", "two, small first")]
    assert ends[0][0] > ends[1][0]


ALWAYS = (("two, small first", 2), ("three", 1))
SMOLLM2_CASES = [
    pytest.param(cut, threads, marks=[] if (cut, threads) in ALWAYS else [pytest.mark.full], id=f"{cut}-{threads}")
    for cut in CUTS
    for threads in (1, 2)
]


@pytest.mark.parametrize(("cut", "threads"), SMOLLM2_CASES)
def test_the_bits_of_smollm2_do_not_depend_on_the_cut(
    smollm2: Path, workers: Workers, unsplit: Callable[[Path], Logits], cut: str, threads: int
) -> None:
    ends, found = _run(smollm2, workers(CUTS[cut], threads, SMOLLM2_LIMITS_MB), threads)
    assert len(ends) == len(CUTS[cut])
    _assert_same_bits(found, unsplit(smollm2))
