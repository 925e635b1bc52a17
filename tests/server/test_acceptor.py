"""More clients at once than files: each is answered or refused in words, over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ollama_zmq.server.connections import TOO_MANY
from ollama_zmq.server.run import MIN_CONNECTIONS, SPARE_FILES, Server, http_settings

REQUEST = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Counted(set):
    """A set that knows how large it has been."""

    largest = 0

    def add(self, item):
        super().add(item)
        self.largest = max(self.largest, len(self))


async def ask(port):
    """The status of the answer, and its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


def test_of_a_burst_no_more_are_accepted_than_there_are_files_and_all_hear_why():
    n_clients, release = 60, asyncio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await release.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

    async def main():
        settings = http_settings(app)
        settings.lifespan = "off"
        server = Server(settings, max_files=1)  # so few that only the least number may connect
        server.server_state.connections = held = Counted()
        listener = socket.create_server(("127.0.0.1", 0), backlog=n_clients)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        asking = [asyncio.create_task(ask(listener.getsockname()[1])) for _ in range(n_clients)]
        refused = 0
        for answer in asyncio.as_completed(asking):
            status, body = await answer
            if status == TOO_MANY.status:
                assert json.loads(body) == {"error": TOO_MANY.error}
                refused += 1
                if refused == n_clients - MIN_CONNECTIONS:
                    release.set()
            else:
                assert (status, body) == (200, b"ok")
        assert refused == n_clients - MIN_CONNECTIONS
        assert MIN_CONNECTIONS < held.largest <= MIN_CONNECTIONS + SPARE_FILES // 2
        server.should_exit = True
        await running

    asyncio.run(asyncio.wait_for(main(), 30))


@contextmanager
def server_with_files(n_files, folder) -> Iterator[tuple[int, list[str]]]:
    """The port of ``ollama serve`` in a process that may open so many files, and what it said until it listened."""
    pytest.importorskip("resource", reason="no limits on files on this system")
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({n_files},) * 2)"
    run = "import sys; from ollama_zmq.cli import run_root; sys.exit(run_root(['serve']))"
    settings = {"OLLAMA_HOST": "127.0.0.1:0", "OLLAMA_MODELS": str(folder), "OLLAMA_RPC_SERVER": "a:1"}
    command, environ = [sys.executable, "-c", f"{limited}; {run}"], os.environ | settings
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stderr is not None
            said = []
            while "server.started" not in (line := process.stderr.readline()):
                assert line, said
                said.append(line)
            (port,) = re.findall(r"url=http://127.0.0.1:(\d+)", line)
            yield int(port), said
        finally:
            process.terminate()
            process.communicate()


def test_with_more_clients_than_files_those_that_must_go_hear_why_and_who_asks_is_answered(tmp_path):
    n_files, n_clients = 64, 160

    async def begin(port):
        """What is said to a client that never ends its request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(REQUEST[:8])
            return await reader.read()
        finally:
            writer.close()

    async def main(port):
        beginning = [asyncio.create_task(begin(port)) for _ in range(n_clients)]
        for _, answer in zip(range(n_clients - n_files), asyncio.as_completed(beginning), strict=False):
            head, _, body = (await answer).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert json.loads(body) == {"error": TOO_MANY.error}
        assert (await ask(port))[0] == 200
        for task in beginning:
            task.cancel()
        await asyncio.gather(*beginning, return_exceptions=True)

    with server_with_files(n_files, tmp_path) as (port, said):
        asyncio.run(asyncio.wait_for(main(port), 60))
    assert any("setting.ignored" in line and "did you mean OLLAMA_RPC_SERVERS?" in line for line in said)
