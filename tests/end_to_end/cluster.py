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
HTTP: dict[str, Any] = {"timeout": DEADLINE_S, "trust_env": False}
LASTING = {"temperature": 0.3, "repeat_penalty": 1.3, "seed": 1}  # neither an end token nor 30 equal tokens in a row
ENDLESS = 10**6


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
        url = children.start_server(addresses[:n_used], env=env | {"OLLAMA_RPC_ALLOW": "*"})
        return cls(children, url, children.running[-1], addresses, workers)

    def get(self, path: str) -> Any:
        """The JSON at *path*."""
        return httpx.get(f"{self.url}{path}", **HTTP).raise_for_status().json()

    def post(self, path: str, **body: Any) -> httpx.Response:
        """The answer to *body*, whole and of whatever status."""
        return httpx.post(f"{self.url}{path}", json=body, **HTTP)

    def ask(self, prompt: str = "hello", **options: Any) -> httpx.Response:
        """One answer of the model ``tiny``, not streamed; 32 tokens unless *options* say otherwise."""
        options = {**LASTING, "num_predict": 32, **options}
        return self.post("/api/generate", model="tiny", prompt=prompt, stream=False, options=options)

    def generate(self, prompt: str = "hello", **options: Any) -> Any:
        """The JSON of :meth:`ask`, which must succeed."""
        answer = self.ask(prompt, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @contextmanager
    def stream(self, n_tokens: int = ENDLESS) -> Iterator[Iterator[Any]]:
        """The lines of a streamed answer of *n_tokens*; the connection closes when the block ends."""
        body = {"model": "tiny", "prompt": "hello", "options": {**LASTING, "num_predict": n_tokens}}
        with httpx.stream("POST", f"{self.url}/api/generate", json=body, **HTTP) as answer:
            yield (json.loads(line) for line in answer.iter_lines())

    def places(self) -> set[str]:
        """Who holds a part of the model."""
        return {stage["worker"] for model in self.get("/api/cluster")["models"] for stage in model["stages"]}

    def missing(self) -> list[str]:
        """Why workers that were named have no part in the model."""
        return [why for model in self.get("/api/cluster")["models"] for why in model["missing"]]


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
