"""Addresses of workers: lists of ``host:port`` as people write them, and endpoints as ZeroMQ wants them."""

from __future__ import annotations

import socket

from ollama_zmq.errors import RequestError, Unreachable

DEFAULT_RPC_PORT = 50052


def parse_servers(text: str) -> tuple[str, ...]:
    """``"10.0.0.10:50052, box2"`` -> ``("10.0.0.10:50052", "box2:50052")``, in order.

    Raises:
        RequestError: an entry has no host, a bad port, or stands there twice.
    """
    found: list[str] = []
    for entry in (part.strip() for part in text.split(",")):
        if not entry:
            continue
        host, colon, port = entry.removeprefix("tcp://").rpartition(":")
        if not colon or (entry.endswith("]") and "[" in entry):
            host, port = entry.removeprefix("tcp://"), str(DEFAULT_RPC_PORT)
        if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
            raise RequestError(
                f"rpc server {entry!r}: expected host:port, as in 10.0.0.10:{DEFAULT_RPC_PORT}", entry=entry
            )
        address = f"{host}:{int(port)}"
        if address in found:
            raise RequestError(f"rpc server {address} is listed twice", entry=entry)
        found.append(address)
    return tuple(found)


def resolve(address: str) -> str:
    """Return the ZeroMQ endpoint of ``host:port``, with the host looked up once.

    Raises:
        Unreachable: the name has no address.
    """
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise Unreachable(f"cannot resolve worker {address}: {why.lower()}", worker=address) from None
    family, *_, sockaddr = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    ip = str(sockaddr[0])
    return f"tcp://[{ip}]:{port}" if family == socket.AF_INET6 else f"tcp://{ip}:{port}"


def is_of_this_machine(ip: str) -> bool:
    """Whether *ip*, an address and no name, is one of this machine's own: only such can be bound."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True
