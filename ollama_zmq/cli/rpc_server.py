"""``ollama rpc-server``: lend this machine's memory and compute to a broker."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ollama_zmq.cli.command import Command
from ollama_zmq.cli.terminal import say
from ollama_zmq.host import DEFAULT_RPC_PORT
from ollama_zmq.printable import printable_line

if TYPE_CHECKING:
    from ollama_zmq.bus.weights import FindBlob
    from ollama_zmq.bus.worker_loop import WorkerLoop
    from ollama_zmq.devices.base import Device

MEGABYTE = 1 << 20
SMALL = 16 * MEGABYTE  # of memory: no layer of a model fits, or few
MAX_DIGITS = 12  # of a number of MB: an exabyte
PORT = click.IntRange(0, 65535)
THREADS = click.IntRange(1, 1024)


def megabytes_of(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return what ``-m`` says as a number.

    Raises:
        BadParameter: it is not a positive whole number.
    """
    if value is None:
        return None
    if not value.isdecimal() or len(value) > MAX_DIGITS or int(value) < 1:
        raise click.BadParameter(
            f"{printable_line(value, 40)!r} is not a number of MB, at least 1, such as 4096", ctx, param
        )
    return int(value)


@click.command(
    name="rpc-server",
    cls=Command,
    environment=("OLLAMA_MODELS", "OLLAMA_CPU_ISA", "OLLAMA_CPU_PIN", "OLLAMA_DEBUG"),
    short_help="Lend this machine's memory and compute to a broker",
)
@click.option("-H", "--host", metavar="HOST", default="127.0.0.1", help="Address to listen on.  [default: 127.0.0.1]")
@click.option(
    "-p",
    "--port",
    metavar="PORT",
    type=PORT,
    default=DEFAULT_RPC_PORT,
    help=f"Port, 0 for any.  [default: {DEFAULT_RPC_PORT}]",
)
@click.option(
    "-m", "--mem", "megabytes", metavar="MB", callback=megabytes_of, help="Memory to use.  [default: available - 10 %]"
)
@click.option("-t", "--threads", metavar="N", type=THREADS, help="Threads to compute with.  [default: all CPUs]")
def rpc_server(host: str, port: int, megabytes: int | None, threads: int | None) -> None:
    """Serve tensor operations to one `ollama serve` at a time, until Ctrl-C.

    On the main host name this machine in OLLAMA_RPC_SERVERS or in options.rpc_servers.
    """
    from ollama_zmq import log
    from ollama_zmq.bus.security import exposure_warning
    from ollama_zmq.host import is_loopback
    from ollama_zmq.kernels.cpu.processor import default_threads

    log.configure()
    address = resolve(host)
    find_blob = _own_store()
    device = _open_device(megabytes, threads)
    signals = _Signals()
    try:
        loop = _listen(host, address, port, device, find_blob)
        signals.call(loop.stop)
        if not is_loopback(address):
            click.secho(exposure_warning(bracketed(host), loop.port), fg="yellow", bold=True, err=True)
        _describe(loop, host, address, device)
        if threads is not None and threads > default_threads():
            say(f"WARNING: {threads} threads on {default_threads()} CPUs slow each other down: take fewer", err=True)
        loop.run()
        say("stopped", err=True)
    finally:
        device.close()


def bracketed(host: str) -> str:
    """*host* as it stands before a port: an IPv6 address in brackets."""
    return f"[{host.strip('[]')}]" if ":" in host else host


def resolve(host: str) -> str:
    """Return the address that *host* stands for, IPv4 if it has one.

    Raises:
        RequestError: it is not known, or has a port.
    """
    from ollama_zmq.errors import RequestError

    name, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and (":" not in name or name.endswith("]")):
        raise RequestError(f"host {host!r} has a port: say -H {name} -p {port}")
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise RequestError(f"host {host!r} is not known: give an address of this machine, such as 0.0.0.0") from None
    addresses = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return str(addresses[0][4][0])


def _open_device(megabytes: int | None, threads: int | None) -> Device:
    import psutil

    from ollama_zmq.devices.base import Budget
    from ollama_zmq.devices.registry import default_budget, open_device
    from ollama_zmq.units import human_bytes

    limit = default_budget() if megabytes is None else megabytes * MEGABYTE
    total = psutil.virtual_memory().total
    if limit > total:
        raise click.BadParameter(f"{megabytes} MB, this machine has {human_bytes(total)}", param_hint="'-m' / '--mem'")
    return open_device("cpu", threads=threads, budget=Budget(limit))


def _listen(host: str, address: str, port: int, device: Device, find_blob: FindBlob) -> WorkerLoop:
    from ollama_zmq.bus.worker_loop import WorkerLoop
    from ollama_zmq.host import is_unspecified

    shown = socket.gethostname() if is_unspecified(address) else bracketed(host)
    endpoint = f"tcp://{bracketed(address)}:{port or '*'}"
    return WorkerLoop(None, endpoint, device, name=f"{shown}:{port or '*'}", find_blob=find_blob, zap=True)


def _own_store() -> FindBlob:
    """Return what finds a blob in this machine's model store.

    Raises:
        RequestError: nobody knows where that is.
    """
    from ollama_zmq.config import Config
    from ollama_zmq.errors import RequestError
    from ollama_zmq.store.blobs import Blobs

    config = Config.from_environment(os.environ)
    config.require("OLLAMA_MODELS")
    blobs = Blobs(config.models / "blobs")

    def find(blob: str) -> Path | None:
        try:
            path = blobs.path(blob)
        except RequestError:
            return None
        return path if path.is_file() else None

    return find


class _Signals:
    """Ends the server on Ctrl-C and SIGTERM, from before it listens."""

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None
        self._came = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._on_signal())

    def call(self, stop: Callable[[], None]) -> None:
        """Call *stop* when a signal comes, or now if one has come."""
        self._stop = stop
        if self._came:
            stop()

    def _on_signal(self) -> None:
        self._came = True
        if self._stop is not None:
            self._stop()


def _describe(loop: WorkerLoop, host: str, address: str, device: Device) -> None:
    import psutil

    from ollama_zmq.units import human_bytes
    from ollama_zmq.version import VERSION

    port = loop.port
    limit = device.budget.limit
    memory = f"{limit // MEGABYTE} MB ({human_bytes(limit)}) of {human_bytes(psutil.virtual_memory().total)}"
    for line in (
        f"ollama-zmq {VERSION} rpc-server",
        f"  listening  {bracketed(host)}:{port}",
        f"  device     {device.name}",
        f"  memory     {memory}",
        "",
        *_how_to_use(host, address, port),
    ):
        say(line, err=True)
    if limit < SMALL:
        say(f"\nWARNING: hardly a layer fits into {limit // MEGABYTE} MB: give it more with -m", err=True)
    sys.stderr.flush()


def _how_to_use(host: str, address: str, port: int) -> list[str]:
    """What to type where, for somebody who has started a worker for the first time."""
    from ollama_zmq.host import is_loopback, is_unspecified

    if is_loopback(address):
        return [
            f'On this machine:  OLLAMA_RPC_SERVERS="{bracketed(host)}:{port}" ollama serve',
            f"Other machines cannot reach it there; for them:  ollama rpc-server -H 0.0.0.0 -p {port}",
        ]
    shown = "<this machine's address>" if is_unspecified(address) else bracketed(host)
    return [f'On the main host:  OLLAMA_RPC_SERVERS="{shown}:{port}" ollama serve']
