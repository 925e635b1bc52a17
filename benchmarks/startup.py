"""How long from typing a command to its answer? Each case starts a fresh process; medians, in milliseconds.

    startup.py [--repeats 7] [--json OUT]

help: `ollama --help` has printed and exited. serve: /api/version answers. rpc-server: the port accepts a connection.
python is the limit below which nothing can be: the interpreter started and stopped, as installed here.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from common import interleaved, median, parser, print_table, run_main, write_json

from ollama_zmq.cli.children import Children, free_port, is_listening

OLLAMA = str(Path(sysconfig.get_path("scripts"), "ollama"))


def main() -> None:
    made = parser(__doc__, model=False, cluster=False)
    made.add_argument("--repeats", type=int, default=7)
    given = made.parse_args()
    cases = {
        "python": lambda: seconds_to_end([sys.executable, "-c", ""]),
        "help": lambda: seconds_to_end([OLLAMA, "--help"]),
        "serve": seconds_to_version,
        "rpc-server": seconds_to_listening,
    }
    for case in cases.values():
        case()
    measured = interleaved(cases, given.repeats)
    rows = [[name, 1000 * median(s), 1000 * min(s), 1000 * max(s)] for name, s in measured.items()]
    print_table(["command", "median ms", "min ms", "max ms"], rows)
    write_json(given.json, [{"command": name, "median_s": median(s), "runs_s": s} for name, s in measured.items()])


def seconds_to_end(command: list[str]) -> float:
    """Seconds until *command* has exited with 0."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def seconds_to_version() -> float:
    """Seconds until `ollama serve` answers /api/version."""
    port = free_port()
    with tempfile.TemporaryDirectory() as models:
        env = {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": models, "OLLAMA_RPC_SERVERS": ""}
        return seconds_until(["serve"], lambda: answers(f"http://127.0.0.1:{port}/api/version"), env)


def seconds_to_listening() -> float:
    """Seconds until `ollama rpc-server` accepts a connection."""
    port = free_port()
    return seconds_until(["rpc-server", "--port", str(port)], lambda: is_listening(port), {})


def seconds_until(arguments: list[str], ready: Callable[[], bool], env: dict[str, str]) -> float:
    """Seconds from the start of ``ollama ARGUMENTS`` until *ready*."""
    with Children() as children:
        started = time.perf_counter()
        children.run([OLLAMA, *arguments], f"ollama {arguments[0]}", env).wait_until(ready)
        return time.perf_counter() - started


def answers(url: str) -> bool:
    """Whether a GET of *url* gives 200."""
    try:
        return httpx.get(url, timeout=1.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    run_main(main)
