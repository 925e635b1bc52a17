"""``OLLAMA_HOST``: where the server listens, and where a client finds it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

from ollama_zmq.errors import RequestError

DEFAULT_PORT = 11434
_SCHEME_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"\w[\w.-]*")
_MAX_COUNT = (1 << 31) - 1


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
        return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def url(self) -> str:
        """What a client on this machine connects to."""
        path = f"/{self.path.strip('/')}" if self.path.strip("/") else ""
        return f"{self.scheme}://{Address(self.scheme, self.reachable, self.port).netloc}{path}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect to a server that listens here."""
        return _is_loopback(self.host)

    @property
    def is_own_machine(self) -> bool:
        """Whether a client that connects here connects to this machine."""
        return _is_loopback(self.reachable)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


DEFAULT_ADDRESS = Address("http", "127.0.0.1", DEFAULT_PORT)


def parse_host(text: str, warnings: list[str] | None = None) -> Address:
    """What ``OLLAMA_HOST`` says: ``[http[s]://]host[:port][/path]``, each part optional, in spaces and quotes.

    An invalid port adds a line to *warnings* and becomes the scheme's.

    Raises:
        RequestError: the scheme is another, or there is no host, or more than one.
    """
    text = trimmed(text)
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "http", text
    if (scheme := scheme.lower()) not in _SCHEME_PORTS:
        raise RequestError(f"OLLAMA_HOST={text!r}: the scheme {scheme!r} is neither http nor https")
    default = _SCHEME_PORTS[scheme] if found else DEFAULT_PORT
    hostport, _, path = rest.partition("/")
    host, port_text = _split_host(hostport)
    if not _is_host(host):
        raise RequestError(f"OLLAMA_HOST={text!r} is no address: expected host:port, as in 127.0.0.1:{DEFAULT_PORT}")
    try:
        port = default if port_text is None else _port(port_text)
    except ValueError:
        if warnings is not None:
            warnings.append(f"OLLAMA_HOST={text!r}: port {port_text!r} is not one of 0..65535, using {default}")
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


def trimmed(text: str) -> str:
    """*text* of a variable without the spaces and quotes around it."""
    return text.strip().strip("\"'").strip()


def unsigned(text: str) -> int:
    """The number that *text* is. Raises ValueError when it is none, or more than 31 bits."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    count = int(text)
    if count > _MAX_COUNT:
        raise ValueError(text)
    return count


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
