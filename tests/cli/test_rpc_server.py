"""``ollama rpc-server`` as a person meets it: what it says, what it refuses, how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from ollama_zmq.cli.children import free_port, is_listening
from ollama_zmq.kernels.cpu.processor import default_threads

ENTRY = "from ollama_zmq.cli import main; main()"
WAIT_S = 60.0


def run(*arguments):
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-c", ENTRY, "rpc-server", *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-P", "-c", ENTRY, "rpc-server", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_listening(process, port):
    deadline = time.monotonic() + WAIT_S
    while not is_listening(port):
        assert process.poll() is None
        assert time.monotonic() < deadline


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_listens_and_ends_quietly(number):
    port = free_port()
    process = start("-p", str(port), "-m", "100", "-t", "1")
    wait_until_listening(process, port)
    process.send_signal(number)
    out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out) == (0, "")
    assert f"listening  127.0.0.1:{port}" in err
    assert "memory     100 MB (104 MB) of" in err
    assert err.endswith("stopped\n")
    assert f'On this machine:  OLLAMA_RPC_SERVERS="127.0.0.1:{port}" ollama serve' in err
    assert f"for them:  ollama rpc-server -H 0.0.0.0 -p {port}\n" in err
    assert "WARNING" not in err
    assert "Traceback" not in err


def test_a_worker_that_can_hold_nothing_says_so():
    process = start("-p", "0", "-m", "1", "-t", "1")
    err = ""
    while "WARNING" not in err and (line := process.stderr.readline()):
        err += line
    process.terminate()
    process.communicate(timeout=WAIT_S)
    assert "WARNING: hardly a layer fits into 1 MB" in err


def test_more_threads_than_cpus_are_told():
    process = start("-p", "0", "-m", "100", "-t", str(default_threads() + 1))
    err = ""
    while "WARNING" not in err and (line := process.stderr.readline()):
        err += line
    process.terminate()
    process.communicate(timeout=WAIT_S)
    assert f"WARNING: {default_threads() + 1} threads on {default_threads()} CPUs" in err


def test_an_ipv6_address_is_printed_in_brackets():
    process = start("-H", "::1", "-p", "0", "-m", "100", "-t", "1")
    err = ""
    while "OLLAMA_RPC_SERVERS" not in err and (line := process.stderr.readline()):
        err += line
    process.terminate()
    process.communicate(timeout=WAIT_S)
    if "is not an address of this machine" in err:
        pytest.skip("no IPv6 here")
    port = re.search(r"listening  \[::1\]:(\d+)\n", err)[1]
    assert f'OLLAMA_RPC_SERVERS="[::1]:{port}" ollama serve' in err


def test_it_warns_when_other_machines_can_reach_it():
    port = free_port()
    process = start("-H", "0.0.0.0", "-p", str(port), "-m", "100")
    wait_until_listening(process, port)
    process.terminate()
    _, err = process.communicate(timeout=WAIT_S)
    assert f"WARNING: listening on 0.0.0.0:{port}" in err
    assert f'On the main host:  OLLAMA_RPC_SERVERS="<this machine\'s address>:{port}" ollama serve' in err
    assert process.returncode == 0


def test_a_port_that_is_chosen_is_the_one_that_is_named():
    process = start("-H", "0.0.0.0", "-p", "0", "-m", "100", "-t", "1")
    err = ""
    while "OLLAMA_RPC_SERVERS" not in err and (line := process.stderr.readline()):
        err += line
    process.terminate()
    process.communicate(timeout=WAIT_S)
    port = re.search(r"listening  0\.0\.0\.0:(\d+)\n", err)[1]
    assert f"WARNING: listening on 0.0.0.0:{port}, which" in err


def test_without_a_home_the_worker_says_what_to_set(monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", "~no-such-user-here/models")
    done = run("-p", "0", "-m", "100")
    assert (done.returncode, done.stdout) == (1, "")
    assert "OLLAMA_MODELS='~no-such-user-here/models'" in done.stderr.strip().splitlines()[-1]
    assert "set OLLAMA_MODELS to a folder" in done.stderr


def test_a_port_in_use_is_named_with_what_to_do():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("-p", str(port), "-m", "100")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"Error: port {port} on 127.0.0.1 is in use: is another rpc-server running? choose another with -p"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("-m", "many"), 1, "'many' is not a number of MB, at least 1, such as 4096"),
        (("-m", "0"), 1, "'0' is not a number of MB, at least 1"),
        (("-H", "10.99.0.2:50052", "-m", "100"), 1, "host '10.99.0.2:50052' has a port: say -H 10.99.0.2 -p 50052"),
        (("-m", "-5"), 1, "'-5' is not a number of MB"),
        (("-m", "9" * 5000), 1, "is not a number of MB"),
        (("-t", "99999999"), 1, "99999999 is not in the range"),
        (("-p", "-1"), 1, "-1 is not in the range"),
        (("-p", "http"), 1, "'http' is not a valid integer"),
        (("-H", "", "-m", "100"), 1, "host '' is not known"),
        (("somewhere",), 1, "accepts 0 arg(s), received 1"),
        (("-m", "999999999"), 1, "999999999 MB, this machine has"),
        (("-p", "70000"), 1, "70000 is not in the range"),
        (("-t", "0"), 1, "0 is not in the range"),
        (("-H", "no-such-host.invalid", "-m", "100"), 1, "host 'no-such-host.invalid' is not known"),
        (("-H", "192.0.2.7", "-m", "100"), 1, "host '192.0.2.7' is not an address of this machine"),
    ],
)
def test_what_cannot_be_is_named_in_one_line(arguments, code, words):
    done = run(*arguments)
    assert done.returncode == code
    assert words in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_h_is_help():
    done = run("-h")
    assert done.returncode == 0
    for option in ("-H, --host", "-p, --port", "-m, --mem", "-t, --threads"):
        assert option in done.stdout
