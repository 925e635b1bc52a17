"""The commands as processes: what they import, how they end."""

import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from ollama_zmq.cli.children import Children, free_port
from ollama_zmq.cli.serve import check
from ollama_zmq.config import Config
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.server.run import listen

HEAVY = {"numpy", "zmq", "starlette", "uvicorn", "httpx", "tokenizers", "jinja2", "rich", "prompt_toolkit", "structlog"}


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], []])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from ollama_zmq.cli import run_root; run_root(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stderr.split()) == set()


def test_the_client_needs_httpx_only(server):
    code = "from ollama_zmq.client import Client; import sys; Client().tags(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = HEAVY & set(done.stdout.split())
    assert loaded - {"rich"} == {"httpx"}  # httpx imports rich for a command line of its own


def test_a_port_in_use_is_told_with_what_to_do():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = Config.from_environment({"OLLAMA_HOST": f"127.0.0.1:{port}"})
        with pytest.raises(OllamaZmqError) as caught:
            listen(config)
    assert str(caught.value) == (
        f"listen tcp 127.0.0.1:{port}: bind: address already in use; "
        "stop the server that runs there, or set OLLAMA_HOST to another port"
    )


def test_an_address_that_is_not_ours_is_told():
    with pytest.raises(OllamaZmqError, match=r"listen tcp 203.0.113.1:0: bind: .*; check OLLAMA_HOST"):
        listen(Config.from_environment({"OLLAMA_HOST": "203.0.113.1:0"}))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_server_cleanly(tmp_path, number):
    with Children() as children:
        children.start_server(env={"OLLAMA_MODELS": str(tmp_path)})
        [server] = children.running
        server.signal(number)
        assert server.process.wait(timeout=60) == 0
        assert "Traceback" not in server.output
        assert "server.stopped" in server.output


@pytest.mark.skipif(sys.platform != "linux", reason="limits are those of Linux")
def test_a_server_takes_more_clients_than_files_it_is_allowed_at_first(tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Children() as children, ExitStack() as open_sockets:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))
        try:
            url = children.start_server(env={"OLLAMA_MODELS": str(tmp_path)})
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        address = "127.0.0.1", int(url.rpartition(":")[2])
        clients = [open_sockets.enter_context(socket.create_connection(address, timeout=60)) for _ in range(200)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert {client.recv(12) for client in clients} == {b"HTTP/1.1 200"}
        assert "uvloop" in Path(f"/proc/{children.running[0].pid}/maps").read_text()


def test_a_second_server_on_the_port_ends_with_1_and_one_line(tmp_path):
    port = free_port()
    with Children() as children, socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        child = children.start("serve", env={"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(tmp_path)})
        assert child.process.wait(timeout=60) == 1
        assert child.output.startswith(f"Error: listen tcp 127.0.0.1:{port}: bind: address already in use")
        assert child.output.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("OLLAMA_HOST", "127.0.0.1:1,127.0.0.1:2", "OLLAMA_HOST='127.0.0.1:1,127.0.0.1:2' is no address: "),
        ("OLLAMA_RPC_SERVERS", "a:1,b:x", "OLLAMA_RPC_SERVERS: rpc server 'b:x': expected host:port"),
        (
            "OLLAMA_RPC_SERVERS",
            ",".join(f"a:{n}" for n in range(1, 66)),
            "OLLAMA_RPC_SERVERS: more than 64 rpc servers",
        ),
        ("OLLAMA_RPC_ALLOW", "*, 10.0.0.0/240", "OLLAMA_RPC_ALLOW: '10.0.0.0/240' is no network, such as 10.0.0.0/24"),
        ("OLLAMA_RPC_MISSING", "foo", "OLLAMA_RPC_MISSING='foo': not one of use-rest, wait, refuse"),
        ("OLLAMA_RPC_SERVERS", "a:1,a:1", "OLLAMA_RPC_SERVERS: rpc server a:1 is listed twice"),
        ("OLLAMA_MODELS", __file__, f"OLLAMA_MODELS: {__file__}: file exists; it has to be a folder that can be read"),
        ("OLLAMA_MODELS", f"{__file__}/x", f"OLLAMA_MODELS: {__file__}/x: not a directory; it has to be a folder"),
    ],
)
def test_a_setting_that_every_request_would_stumble_over_ends_the_server(ollama, monkeypatch, name, value, error):
    monkeypatch.setenv(name, value)
    printed = ollama("serve")
    assert (printed.code, printed.out, printed.err.count("\n")) == (1, "", 1)
    assert printed.err.startswith(f"Error: {error}")


def test_a_folder_of_models_is_made_and_one_that_cannot_be_written_is_told(tmp_path, monkeypatch, logs):
    config = replace(Config(), models=tmp_path / "a" / "b")
    check(config)
    assert (config.models.is_dir(), logs) == (True, [])

    def refused(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    check(config)
    assert [(entry["event"], entry["models_dir"]) for entry in logs] == [("store.read_only", str(config.models))]


def test_a_closed_pipe_is_no_error(server):
    command = f"{sys.executable} -c 'from ollama_zmq.cli import main; main()' show tiny -v | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("  Model\n", "")
