"""``OLLAMA_HOST``: where the server listens, and where a client finds it; and which hosts are this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from ollama_zmq.errors import RequestError
from ollama_zmq.variables import trimmed, unsigned

DEFAULT_PORT = 11434
DEFAULT_RPC_PORT = 50052
_SCHEME_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens or is found. An empty *host* means every interface."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def netloc(self) -> str:
        """``127.0.0.1:11434``, ``[::1]:11434``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def reachable(self) -> str:
        """The host that a client on this machine connects to: an unspecified one becomes loopback."""
        return reachable(self.host)

    @property
    def url(self) -> str:
        """What a client on this machine connects to."""
        path = f"/{self.path.strip('/')}" if self.path.strip("/") else ""
        return f"{self.scheme}://{Address(self.scheme, self.reachable, self.port).netloc}{path}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect to a server that listens here."""
        return is_loopback(self.host)

    @property
    def is_own_machine(self) -> bool:
        """Whether a client that connects here connects to this machine."""
        return is_loopback(self.reachable)


def is_loopback(host: str) -> bool:
    """Whether *host*, an address (of IPv6 with or without brackets) or a name, is reached from its own machine only."""
    ip = _ip(host)
    return ip.is_loopback if ip is not None else host.lower().removesuffix(".") == "localhost"


def is_unspecified(host: str) -> bool:
    """Whether *host* means every interface of a machine."""
    ip = _ip(host)
    return ip.is_unspecified if ip is not None else not host


def reachable(host: str) -> str:
    """The host to connect to for one that listens at *host* on this machine: an unspecified one becomes loopback."""
    if not is_unspecified(host):
        return host
    return "::1" if ":" in host else "127.0.0.1"


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    """The address that *host* is, an IPv4 one that is written as IPv6 as itself; None for a name."""
    try:
        ip = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


DEFAULT_ADDRESS = Address("http", "127.0.0.1", DEFAULT_PORT)


def parse_host(text: str, warnings: list[str] | None = None, *, source: str = "OLLAMA_HOST") -> Address:
    """What ``OLLAMA_HOST`` (or *source*) says: ``[http[s]://]host[:port][/path]``, all optional, in spaces and quotes.

    An invalid port adds a line to *warnings* and becomes the scheme's.

    Raises:
        RequestError: the scheme is another, or there is no host, or more than one.
    """
    text = trimmed(text)
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "http", text
    if (scheme := scheme.lower()) not in _SCHEME_PORTS:
        raise RequestError(f"{source}={text!r}: the scheme {scheme!r} is neither http nor https")
    default = _SCHEME_PORTS[scheme] if found else DEFAULT_PORT
    hostport, _, path = rest.partition("/")
    host, port_text = _split_host(hostport)
    if not _is_host(host):
        raise RequestError(f"{source}={text!r} is no address: expected host:port, as in 127.0.0.1:{DEFAULT_PORT}")
    try:
        port = default if port_text is None else _port(port_text)
    except ValueError:
        if warnings is not None:
            warnings.append(f"{source}={text!r}: port {port_text!r} is not one of 0..65535, using {default}")
        port = default
    return Address(scheme, host, port, path.strip("/"))


def _is_host(host: str) -> bool:
    """Whether *host* is "" (every interface), an address, or could be a name: labels of 1 to 63 characters."""
    try:
        if not _HOST_NAME.fullmatch(host):
            return not host or bool(ip_address(host))
        host.encode("idna")
    except ValueError:  # UnicodeError is one
        return False
    return True


def _split_host(text: str) -> tuple[str, str | None]:
    """Host and port of ``host:port``; the port is None when there is none."""
    bare = text.strip("[]")
    if not bare:
        return "127.0.0.1", None
    try:
        return str(ip_address(bare)), None
    except ValueError:
        pass
    host, colon, port = text.rpartition(":")
    return (host.strip("[]"), port) if colon else (text, None)


def _port(text: str) -> int:
    port = unsigned(text)
    if port > 65535:
        raise ValueError(text)
    return port
