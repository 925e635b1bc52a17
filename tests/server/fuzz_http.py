"""Random requests to a real server: heads, bodies, JSON that was mutated, chunked framing, early ends.

    python -m tests.server.fuzz_http --seconds 600 --seed 1     prints one line of JSON; exit 1 when something is wrong

One seed is one sequence of requests. What must hold: every answer has a status line, none is an error of ours (500 with
"internal error"), no traceback is logged, and the server answers an ordinary request after all of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import psutil
import structlog

from ollama_zmq.server import connections
from ollama_zmq.server.app import ROUTES
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.models import Store
from tests.models_tiny import write_tiny_llama
from tests.server.fake_broker import FakeBroker
from tests.server.live import live_server

METHODS = ["GET", "POST", "DELETE", "HEAD", "PUT", "OPTIONS", "PATCH", "TRACE", "get", "\x00", "PRI"]
PATHS = [route.path.replace("{digest}", "sha256:" + "0" * 64).replace("{key}", "k") for route in ROUTES]
HEADERS = ["Expect", "Connection", "Upgrade", "Origin", "User-Agent", "Content-Encoding", "X", "\xff"]
HEADER_VALUES = ["100-continue", "close", "keep-alive", "h2c, Upgrade", "gzip", "a" * 9000, "\xff\xfe", ""]
WORDS = [
    "model", "tiny", "prompt", "messages", "role", "user", "content", "stream", "options", "num_ctx", "raw", "system",
    "template", "{{ .Prompt }}", "images", "tools", "think", "format", "json", "keep_alive", "context", "from", "files",
    "\ud83d", "\x00", "é", "a//b", "0", "-1m", "name", "tool_calls", "function", "arguments", "", "stop", "suffix",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2**31, 2**63, -(2**63), 2**64, 1e308, 1e-320, 0.5]


class ForgetfulBroker(FakeBroker):
    """One that keeps no list of what it was asked, so that growth of memory is the server's."""

    def submit(self, model, request, on_output):
        super().submit(model, request, on_output)
        self.submitted.clear()
        self._sinks.clear()

    def load(self, *arguments, **settings):
        self.loads.clear()
        return super().load(*arguments, **settings)

    def cancel(self, request_id):
        pass


class Complaints(logging.Handler):
    """What asyncio's own logger says at level error: a task whose exception nobody saw, a callback that failed."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


class Fuzz:
    """Requests drawn from *seed*, for the server at *url*.

    Attributes:
        n_requests: how many were sent; statuses: how often each came, 0 for no answer.
        wrong: what must not be, in words.
    """

    def __init__(self, url: str, seed: int) -> None:
        self.draw = random.Random(seed)
        self.address = (urlsplit(url).hostname, urlsplit(url).port)
        self.n_requests = 0
        self.statuses: dict[int, int] = {}
        self.wrong: list[str] = []

    def step(self) -> None:
        """Send one request, or something like one, and read what comes."""
        self.n_requests += 1
        data = self._request()
        try:
            with socket.create_connection(self.address, timeout=20) as connection:
                connection.settimeout(20)
                leaves = self.draw.random() < 0.2
                self._send(connection, data)
                if leaves:
                    return
                connection.shutdown(socket.SHUT_WR) if self.draw.random() < 0.5 else None
                self._judge(self._answer(connection), data)
        except TimeoutError:
            self.wrong.append(f"no answer in 20 s to {data[:300]!r}")
        except OSError:
            self._count(0)

    def _send(self, connection: socket.socket, data: bytes) -> None:
        while data:
            size = self.draw.choice([1, 7, 100, 4096, 1 << 20])
            connection.sendall(data[:size])
            data = data[size:] if size > 7 or self.draw.random() < 0.9 else data[size:][:50]

    def _answer(self, connection: socket.socket) -> bytes:
        """The head of the answer and what came with it; a connection that stays open is not waited for."""
        answer = b""
        while b"\r\n\r\n" not in answer and (more := connection.recv(1 << 16)):
            answer += more
        connection.settimeout(0.05)
        try:
            while len(answer) < 1 << 20 and (more := connection.recv(1 << 16)):
                answer += more
        except TimeoutError:
            pass
        return answer

    def _judge(self, answer: bytes, data: bytes) -> None:
        words = answer.split(None, 2)
        if not answer:
            return self._count(0)
        if not answer.startswith(b"HTTP/1.") or not words[1].isdigit():
            self.wrong.append(f"no status line in {answer[:100]!r} to {data[:300]!r}")
            return None
        if b"internal error" in answer or b"Internal Server Error" in answer:
            self.wrong.append(f"{answer[:200]!r} to {data[:600]!r}")
        return self._count(int(words[1]))

    def _count(self, status: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def _request(self) -> bytes:
        draw = self.draw
        body = self._body()
        path = draw.choice(PATHS) if draw.random() < 0.9 else "".join(chr(draw.randrange(1, 256)) for _ in range(30))
        method = "POST" if draw.random() < 0.8 else draw.choice(METHODS)
        version = draw.choice(["1.1"] * 40 + ["1.0"] * 5 + ["0.9", "2.0", "9"])
        headers = [f"Host: {draw.choice(['localhost', '127.0.0.1'] * 9 + ['evil.example', '[::1]', ''])}"]
        if draw.random() < 0.03:
            headers = headers * draw.choice([0, 2])
        if draw.random() < 0.3:
            headers.append("Transfer-Encoding: " + draw.choice(["chunked"] * 9 + ["gzip", "chunked, chunked", "x"]))
            body = self._chunked(body)
        if len(headers) < 2 or draw.random() < 0.1:
            length = len(body) if draw.random() < 0.9 else draw.choice([0, len(body) + 9, -1, 10**30])
            headers.append(f"Content-Length: {length}")
        for _ in range(draw.choice([0, 0, 0, 1, 2])):
            headers.append(f"{draw.choice(HEADERS)}: {draw.choice(HEADER_VALUES)}")
        head = "\r\n".join([f"{method} {path} HTTP/{version}", *headers, "", ""]).encode("latin-1", "replace")
        return self._mutated(head, 0.1) + body

    def _body(self) -> bytes:
        draw = self.draw
        value = {"model": "tiny", "prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}], "stream": False}
        if draw.random() < 0.5:
            value[draw.choice(WORDS)] = self._json(3)
        else:
            value = self._json(4)
        text = json.dumps(value, ensure_ascii=draw.random() < 0.5)
        return self._mutated(text.encode("utf-8", "surrogatepass"), 0.3)

    def _json(self, depth: int) -> object:
        draw = self.draw
        kind = draw.randrange(8 if depth else 5)
        if kind > 5:
            return {draw.choice(WORDS): self._json(depth - 1) for _ in range(draw.randrange(5))}
        if kind == 5:
            return [self._json(depth - 1) for _ in range(draw.randrange(4))]
        return draw.choice([draw.choice(WORDS), draw.choice(NUMBERS), None, True, draw.choice(WORDS) * 50])

    def _chunked(self, body: bytes) -> bytes:
        draw, framed = self.draw, b""
        while body:
            size = draw.randrange(1, 200)
            part, body = body[:size], body[size:]
            claimed = len(part) if draw.random() < 0.97 else draw.choice([0, len(part) + 1, 1 << 70])
            framed += b"%x%s\r\n%s\r\n" % (claimed, draw.choice([b"", b"", b";a=b"]), part)
        return framed + draw.choice([b"0\r\n\r\n"] * 6 + [b"", b"0\r\n", b"0\r\nA: b\r\n\r\n"])

    def _mutated(self, data: bytes, chance: float) -> bytes:
        draw, mutated = self.draw, bytearray(data)
        if draw.random() < chance:
            for _ in range(draw.randrange(1, 5)):
                at = draw.randrange(len(mutated) + 1)
                mutated[at : at + draw.randrange(3)] = bytes(draw.randrange(256) for _ in range(draw.randrange(3)))
        return bytes(mutated)


def tiny_store(folder: Path) -> Store:
    """A store with the model ``tiny``."""
    store = Store(folder / "models")
    blob = store.blobs.add_file(write_tiny_llama(folder / "tiny.gguf", n_layers=1))
    store.create("tiny", Recipe(files={"tiny.gguf": blob.digest}))
    return store


def run(store: Store, seed: int, *, n_requests: int = 0, seconds: float = 0.0, n_clients: int = 8) -> dict[str, object]:
    """What came of *n_requests* by each of *n_clients* at once, or of as many as fit in *seconds*."""
    memory, process, complaints = [], psutil.Process(), Complaints()
    logging.getLogger("asyncio").addHandler(complaints)
    with (
        mock.patch.multiple(connections, HEAD_S=0.5, BODY_S=0.5),
        structlog.testing.capture_logs() as logs,
        live_server(ForgetfulBroker(), store) as url,
    ):
        clients = [Fuzz(url, seed * 1000 + number) for number in range(n_clients)]
        until = time.monotonic() + seconds

        def work(fuzz: Fuzz) -> None:
            while fuzz.n_requests < n_requests or time.monotonic() < until:
                fuzz.step()
                if fuzz is clients[0] and fuzz.n_requests % 200 == 0:
                    memory.append(process.memory_info().rss >> 20)
                    logs[:] = [log for log in logs if log["log_level"] == "error"]

        with ThreadPoolExecutor(n_clients) as pool:
            list(pool.map(work, clients))
        wrong = [text for fuzz in clients for text in fuzz.wrong]
        with socket.create_connection(clients[0].address, timeout=20) as connection:
            connection.sendall(b"GET /api/version HTTP/1.0\r\n\r\n")
            if not connection.recv(1000).startswith(b"HTTP/1.0 200"):
                wrong.append("no answer to an ordinary request after all")
    gc.collect()  # a task that is dropped complains then
    logging.getLogger("asyncio").removeHandler(complaints)
    wrong += complaints.texts + [str(log) for log in logs if log["log_level"] == "error"]
    statuses = sum((Counter(fuzz.statuses) for fuzz in clients), Counter())
    return {
        "seed": seed,
        "requests": sum(fuzz.n_requests for fuzz in clients),
        "statuses": dict(sorted(statuses.items())),
        "rss_mb": memory,
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = run(tiny_store(Path(folder)), given.seed, seconds=given.seconds)
    print(json.dumps(record))
    sys.exit(bool(record["wrong"]))


if __name__ == "__main__":
    main()
