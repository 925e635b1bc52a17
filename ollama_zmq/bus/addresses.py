"""Addresses of workers: lists of ``host:port`` as people write them, and endpoints as ZeroMQ wants them.

An IPv6 address with a port stands in brackets, ``[fe80::1]:50052``; without, it may stand alone.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ollama_zmq.errors import RequestError
from ollama_zmq.host import DEFAULT_RPC_PORT, is_loopback, reachable

MAX_SERVERS = 64
RESOLVE_LIMIT_S = 1.5
_LIKE_IPV4 = re.compile(
    r"[0-9]+(\.[0-9]+)+"
)  # no name ends in a number: a slip in an address, whatever a resolver says


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a worker may be found: ZeroMQ endpoints in the order to try; when there are none, why."""

    endpoints: tuple[str, ...]
    why: str = ""


def parse_servers(text: str) -> tuple[str, ...]:
    """``"10.0.0.10:50052, box2, ::1"`` -> ``("10.0.0.10:50052", "box2:50052", "[::1]:50052")``, in order.

    Raises:
        RequestError: an entry has no host, a bad port, or stands there twice, or there are more than ``MAX_SERVERS``.
    """
    entries = [part.strip() for part in text.split(",")]
    found: list[str] = []
    for entry in filter(None, entries):
        if len(found) == MAX_SERVERS:
            raise RequestError(f"more than {MAX_SERVERS} rpc servers")
        address = _address(entry)
        if address in found:
            raise RequestError(f"rpc server {address} is listed twice", entry=entry)
        found.append(address)
    return tuple(found)


def _address(entry: str) -> str:
    text = entry.removeprefix("tcp://")
    host, colon, port = text.rpartition(":")
    if _is_ipv6(text) or not colon or text.endswith("]"):
        host, port = text, str(DEFAULT_RPC_PORT)
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host != bare
    plain = port.isascii() and port.isdecimal() and len(port) < 6
    if not bare or not plain or not 1 <= int(port) <= 65535 or ((":" in bare or bracketed) and not _is_ipv6(bare)):
        raise RequestError(
            f"rpc server {entry[:200]!r}: expected host:port, as in 10.0.0.10:{DEFAULT_RPC_PORT}", entry=entry
        )
    return f"[{bare}]:{int(port)}" if ":" in bare else f"{bare}:{int(port)}"


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def is_allowed(address: str, own: Collection[str], allowed: str) -> bool:
    """Return whether a request may name the worker at *address*. Names are compared, not looked up.

    Args:
        own: the workers of the server's own list, which a request may always name.
        allowed: "10.0.0.0/24, box2, 10.1.0.1:50052, *"; when it is empty and there is no *own*, loopback.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]").lower()
    entries = [entry.strip().lower() for entry in allowed.split(",") if entry.strip()]
    if address in own:
        return True
    if not entries:
        return not own and is_loopback(host)
    return any(_matches(entry, host, port) for entry in entries)


def _matches(entry: str, host: str, port: str) -> bool:
    name, colon, its_port = entry.rpartition(":")
    if colon and its_port == port and name.strip("[]") == host:
        return True
    return entry == "*" or entry.strip("[]") == host or _within(host, entry)


def _within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def resolve_all(addresses: Iterable[str], limit_s: float = RESOLVE_LIMIT_S) -> dict[str, Resolved]:
    """Return where each of *addresses* is. Names are looked up at the same time, each for *limit_s* at most."""
    found: dict[str, Resolved] = {}
    threads = []
    for address in addresses:
        if _is_numeric(address):
            found[address] = _resolve(address)
            continue
        found[address] = Resolved((), f"cannot resolve worker {address}: no answer within {limit_s:g} s")
        threads.append(threading.Thread(target=_look_up, args=(address, found), name="resolver", daemon=True))
    for thread in threads:
        thread.start()
    until = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.0))
    return dict(found)


def _look_up(address: str, found: dict[str, Resolved]) -> None:
    found[address] = _resolve(address)


def _is_numeric(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _resolve(address: str) -> Resolved:
    """Every endpoint of ``host:port``: IPv4 first, and loopback for an address that means all of this machine's."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if _LIKE_IPV4.fullmatch(host):
            return Resolved((), f"cannot resolve worker {address}: {host} is no address and no known name")
        why = getattr(error, "strerror", None) or str(error)
        return Resolved((), f"cannot resolve worker {address}: {why.lower()}")
    ordered = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    ips = (str(sockaddr[0]) for _, _, _, _, sockaddr in ordered)
    return Resolved(tuple(dict.fromkeys(_endpoint(ip, port) for ip in ips)))


def _endpoint(ip: str, port: str) -> str:
    ip = reachable(ip)
    return f"tcp://[{ip}]:{port}" if ":" in ip else f"tcp://{ip}:{port}"


def is_of_this_machine(ip: str) -> bool:
    """Whether *ip*, an address and no name, is one of this machine's own: only such can be bound."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True
