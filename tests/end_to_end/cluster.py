"""A cluster of processes on this machine, and its HTTP interface."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ollama_zmq.cli.children import Child, Children

DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Workers, and a server over some of them.

    Attributes:
        addresses: of all workers.
    """

    children: Children
    url: str
    server: Child
    addresses: tuple[str, ...]
    workers: tuple[Child, ...]

    @classmethod
    def start(cls, children: Children, models: Path, n_workers: int, n_used: int | None = None) -> Cluster:
        """Start *n_workers* workers of one thread, and a server over the first *n_used* of them (all if None)."""
        env = {"OLLAMA_MODELS": str(models)}
        addresses = tuple(children.start_worker(threads=1, env=env) for _ in range(n_workers))
        workers = tuple(children.running)
        url = children.start_server(addresses[:n_used], env=env)
        return cls(children, url, children.running[-1], addresses, workers)

    def get(self, path: str) -> Any:
        """The JSON at *path*."""
        return self._client().get(path).raise_for_status().json()

    def post(self, path: str, **body: Any) -> httpx.Response:
        """The answer to *body*, whole and of whatever status."""
        return self._client().post(path, json=body)

    def generate(self, prompt: str = "hello", **options: Any) -> Any:
        """One answer of the model ``tiny``, not streamed; 32 tokens unless *options* say otherwise."""
        answer = self.post(
            "/api/generate", model="tiny", prompt=prompt, stream=False, options={"num_predict": 32, **options}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    @contextmanager
    def stream(self, **body: Any) -> Iterator[Iterator[Any]]:
        """The lines of a streamed ``/api/generate``; the connection closes when the block ends."""
        with self._client().stream("POST", "/api/generate", json={"model": "tiny", **body}) as answer:
            yield (json.loads(line) for line in answer.iter_lines())

    def endless(self) -> dict[str, Any]:
        """A request whose answer goes on for minutes."""
        return {"prompt": "hello", "options": {"num_predict": 10**6, "temperature": 0.0}}

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE_S, trust_env=False)


def until(true: Callable[[], bool]) -> None:
    """Return as soon as *true* is; fail after a minute."""
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, "did not happen within a minute"
        time.sleep(0.01)


def interrupt(child: Child) -> int:
    """Press Ctrl-C in *child*'s terminal and return its exit code."""
    child.signal(signal.SIGINT)
    return child.process.wait(DEADLINE_S)
