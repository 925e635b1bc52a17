"""What a monitor says of the connection to a worker, as the coordinator's event, in words for people."""

from __future__ import annotations

from ollama_zmq.bus.monitor import Connected, Disconnected, HandshakeFailed, Retried, SocketEvent
from ollama_zmq.bus.security import is_loopback
from ollama_zmq.cluster.events import Attached, ConnectionFailed, ConnectionLost, Event


def event_of(address: str, happened: SocketEvent) -> Event | None:
    """What *happened* to the connection to *address*; None when it is nothing to the coordinator."""
    match happened:
        case Connected():
            return Attached(address)
        case Disconnected():
            return ConnectionLost(address, f"worker {address} is gone: the connection broke")
        case HandshakeFailed(kind="auth"):
            return ConnectionFailed(address, _leased(address))
        case HandshakeFailed(kind="protocol"):
            return ConnectionFailed(address, _stranger(address))
        case HandshakeFailed():  # closed: a refusal may have been overtaken by the end of its connection
            return ConnectionFailed(address, _stranger(address), final=False)
        case Retried():
            return ConnectionFailed(address, _nobody(address), final=False)
    return None


def _nobody(address: str) -> str:
    if is_loopback(address.rpartition(":")[0].strip("[]")):
        return f"nobody listens at {address}: start `ollama rpc-server` there, or take it off the list"
    return (
        f"nobody listens at {address}: start `ollama rpc-server -H 0.0.0.0` there (without -H it listens for its own "
        "machine only), or take it off the list"
    )


def _stranger(address: str) -> str:
    return f"{address} answers, but not as an ollama-zmq worker: is another service on that port?"


def _leased(address: str) -> str:
    return f"worker {address} is leased to another broker: stop that `ollama serve`, or take the worker off the list"
