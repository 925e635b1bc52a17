"""What a person does wrong, and what machines do, ends in an error that names it; the server lives on."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from ollama_zmq.bus.broker import Broker
from ollama_zmq.bus.loads import LoadRequest
from ollama_zmq.cli.children import Children, free_port
from ollama_zmq.errors import OutOfDeviceMemory
from ollama_zmq.store.models import Store
from tests.end_to_end.cluster import ENDLESS, LASTING, Cluster, until


def test_a_killed_worker_ends_its_request_and_nothing_else(cluster: Cluster) -> None:
    with cluster.stream() as lines:
        next(lines)
        cluster.workers[1].signal(signal.SIGKILL)
        last = list(lines)[-1]
    assert set(last) == {"error"}
    assert cluster.addresses[1] in last["error"]
    rest = cluster.generate()["context"]
    assert cluster.places() == {cluster.addresses[0], "local"}
    assert rest == cluster.generate(rpc_servers="")["context"]


def test_a_worker_that_comes_back_is_used_again(cluster: Cluster, models: Path) -> None:
    cluster.generate()
    cluster.workers[0].signal(signal.SIGKILL)
    cluster.workers[0].process.wait()
    cluster.generate()
    port = cluster.addresses[0].partition(":")[2]
    cluster.children.start("rpc-server", "--port", port, "--threads", "1", env={"OLLAMA_MODELS": str(models)})

    def is_used() -> bool:
        cluster.generate(num_ctx=512)  # the other context makes it load again
        cluster.generate()
        return cluster.addresses[0] in cluster.places()

    until(is_used)


def test_a_second_broker_is_refused_and_both_go_on(cluster: Cluster, models: Path) -> None:
    expected = cluster.generate()["context"]
    other = Cluster.start(cluster.children, models, n_workers=0)
    assert other.generate(rpc_servers=cluster.addresses[0])["context"] == expected
    assert (other.places(), len(other.missing())) == ({"local"}, 1)
    cluster.generate()


def test_a_stranger_who_knocks_at_a_worker_disturbs_nobody(cluster: Cluster) -> None:
    with cluster.stream(200) as lines:
        next(lines)
        for address in cluster.addresses:
            host, _, port = address.partition(":")
            with socket.create_connection((host, int(port))) as knock:
                knock.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(100))
        last = list(lines)[-1]
    assert last["done"]
    assert last["eval_count"] == 200


def is_free(cluster: Cluster, waiting: int) -> bool:
    """Whether no request has pages, and so many wait."""
    (model,) = cluster.get("/api/cluster")["models"]
    use = model["use"]
    return (use["running"], use["waiting"], use["free_pages"]) == (0, waiting, model["kv_pages"])


def test_a_client_that_leaves_frees_the_engine(cluster: Cluster) -> None:
    with cluster.stream() as lines:
        next(lines)
        assert not is_free(cluster, waiting=0)
    until(lambda: is_free(cluster, waiting=0))
    assert cluster.generate(num_predict=4)["eval_count"] == 4


def test_a_client_that_does_not_read_pauses_its_request(cluster: Cluster) -> None:
    host, port = cluster.url.removeprefix("http://").split(":")
    long_lines = {"logprobs": True, "top_logprobs": 20, "options": {**LASTING, "num_predict": ENDLESS}}
    body = json.dumps({"model": "tiny", "prompt": "hello", **long_lines}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.sendall(b"POST /api/generate HTTP/1.1\r\nHost: x.local\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert client.recv(12) == b"HTTP/1.1 200"
        until(lambda: is_free(cluster, waiting=1))
        assert cluster.generate(num_predict=4)["eval_count"] == 4
    until(lambda: is_free(cluster, waiting=0))


def test_a_small_worker_gets_what_fits(children: Children, models: Path) -> None:
    env = {"OLLAMA_MODELS": str(models)}
    small = children.start_worker(threads=1, memory_mb=24, env=env)
    large = children.start_worker(threads=1, env=env)
    url = children.start_server([small, large], env=env)
    cluster = Cluster(children, url, children.running[-1], (small, large), tuple(children.running[:2]))
    split = cluster.generate(num_ctx=256, num_batch=64)
    workers = {worker["address"]: worker for worker in cluster.get("/api/cluster")["workers"]}
    assert workers[small]["memory_budget"] == 24 << 20
    assert 0 < workers[small]["held_bytes"] <= 24 << 20
    assert split["context"] == cluster.generate(num_ctx=256, rpc_servers="")["context"]


def test_too_little_memory_everywhere_is_named(children: Children, models: Path) -> None:
    small = children.start_worker(threads=1, memory_mb=8)
    path = Store(models).get("tiny").gguf_path
    with Broker(threads=1, memory_limit=9_000_000) as broker, pytest.raises(OutOfDeviceMemory) as caught:
        broker.load(LoadRequest(name="tiny", path=path, num_ctx=256, rpc_servers=(small,))).result(60)
    for fact in ("the model needs 30 MB with the KV cache of num_ctx 256", f"{small} 8.4 MB", "local 9 MB", "raise -m"):
        assert fact in str(caught.value)


# Somebody else at the address

Serve = Callable[[socket.socket], None]


def _speak(connection: socket.socket, words: bytes) -> None:
    with suppress(OSError), closing(connection):
        connection.sendall(words)
        while connection.recv(4096):
            connection.sendall(words)


@pytest.fixture
def somebody() -> Iterator[Callable[[bytes], str]]:
    """Start a service that says the same to everybody, and return its address."""
    with ExitStack() as stack:

        def start(words: bytes) -> str:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            stack.callback(listener.shutdown, socket.SHUT_RDWR)

            def accept() -> None:
                with suppress(OSError):
                    while True:
                        _speak(listener.accept()[0], words)

            threading.Thread(target=accept, daemon=True).start()
            return f"127.0.0.1:{listener.getsockname()[1]}"

        yield start


HTTP_ANSWER = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("words", [HTTP_ANSWER, bytes(range(7, 256)) * 4, b""], ids=["http", "noise", "silence"])
def test_another_service_at_an_address_is_left_out_and_what_it_is_stays_in_the_log(
    quiet_cluster: Cluster, somebody: Callable[[bytes], str], words: bytes
) -> None:
    """A client that names addresses must not learn from the server what listens there."""
    address = somebody(words)
    expected = quiet_cluster.generate()["context"]
    answer = quiet_cluster.generate(rpc_servers=f"{quiet_cluster.addresses[0]},{address}")
    assert answer["context"] == expected
    assert quiet_cluster.missing() == [f"worker {address} is not available; the server's log says why"]


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_an_address_where_nobody_is_is_left_out_in_the_same_words(quiet_cluster: Cluster, host: str) -> None:
    address = f"{host}:{free_port()}"
    quiet_cluster.generate(rpc_servers=f"{address},{quiet_cluster.addresses[0]}")
    assert quiet_cluster.addresses[0] in quiet_cluster.places()
    assert quiet_cluster.missing() == [f"worker {address} is not available; the server's log says why"]


def test_the_servers_own_list_may_name_who_is_not_there(children: Children, models: Path) -> None:
    """At its first load, beside two workers that are: a dead address and a name that nobody knows."""
    env = {"OLLAMA_MODELS": str(models)}
    first, second = (children.start_worker(threads=1, env=env) for _ in range(2))
    dead, unknown = f"127.0.0.1:{free_port()}", "no-such-host.invalid:50052"
    workers, url = tuple(children.running), children.start_server([dead, first, unknown, second], env=env)
    cluster = Cluster(children, url, children.running[-1], (first, second), workers)
    alone = cluster.generate(rpc_servers="")["context"]
    assert cluster.generate()["context"] == alone
    assert cluster.places() == {first, second, "local"}
    nobody, nameless = cluster.missing()
    assert nobody.startswith(f"nobody listens at {dead}")
    assert nameless.startswith(f"cannot resolve worker {unknown}")


@pytest.mark.parametrize("servers", ["127.0.0.1:99999", ":50052", "127.0.0.1:5,127.0.0.1:5"])
def test_a_list_that_is_none_is_the_callers_fault(quiet_cluster: Cluster, servers: str) -> None:
    answer = quiet_cluster.ask(rpc_servers=servers)
    assert answer.status_code == 400
    assert "rpc server" in answer.json()["error"]


# Ports and interrupts


@pytest.mark.parametrize("command", ["rpc-server", "serve"])
def test_a_port_in_use_is_named(children: Children, command: str, somebody: Callable[[bytes], str]) -> None:
    port = somebody(b"").partition(":")[2]
    arguments = ["--port", port] if command == "rpc-server" else []
    child = children.start(command, *arguments, env={"OLLAMA_HOST": f"127.0.0.1:{port}"})
    assert child.process.wait(60) == 1
    assert child.output.startswith("Error: ")
    assert port in child.output
    assert "Traceback" not in child.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_end_every_process_without_a_traceback(cluster: Cluster, number: signal.Signals) -> None:
    with cluster.stream() as lines:
        next(lines)
        processes = [cluster.server, *cluster.workers]
        for child in processes:
            child.signal(number)
        codes = [child.process.wait(60) for child in processes]
    assert all(code in (0, 130, 143) for code in codes), codes
    assert [child.name for child in processes if "Traceback" in child.output] == []
