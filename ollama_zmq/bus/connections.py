"""Why a worker cannot be connected, by what its probe or the socket's monitor saw, in words for people."""

from __future__ import annotations

from ollama_zmq.bus.monitor import Disconnected, HandshakeFailed, Retried, SocketEvent
from ollama_zmq.bus.probe import CONNECT_TIMEOUT_S, GREETING_TIMEOUT_S, Outcome, Probed
from ollama_zmq.cluster.events import ConnectionFailed
from ollama_zmq.host import is_loopback

_RETRIED = frozenset({Outcome.REFUSED, Outcome.ENDED})  # a worker that starts looks like this for a moment


def failure_of_handshake(address: str, epoch: int, happened: SocketEvent) -> ConnectionFailed | None:
    """Return why libzmq's handshake with *address* failed; None when *happened* is no failure."""
    match happened:
        case HandshakeFailed(kind="auth"):
            return ConnectionFailed(address, epoch, _leased(address))
        case HandshakeFailed(kind="closed"):
            return ConnectionFailed(address, epoch, _ended(address), final=False)
        case HandshakeFailed() | Disconnected():  # of ZMTP 1 and 2 libzmq reports no more than the end
            return ConnectionFailed(address, epoch, _stranger(address))
        case Retried():
            return ConnectionFailed(address, epoch, _nobody(address), final=False)
    return None


def failure_of_probe(address: str, epoch: int, probed: Probed) -> ConnectionFailed:
    """Return why a probe of *address* was not greeted; not final when a worker that just starts may look the same."""
    match probed.outcome:
        case Outcome.REFUSED:
            words = _nobody(address)
        case Outcome.UNREACHABLE:
            words = f"{address} cannot be reached ({probed.detail}): is the machine on, and in a network of this one?"
        case Outcome.NO_ANSWER:
            words = (
                f"no answer from {address} within {CONNECT_TIMEOUT_S:g} s: is the machine on, the address right and "
                "the port open in its firewall?"
            )
        case Outcome.SILENT:
            words = (
                f"{address} takes connections but sent nothing within {GREETING_TIMEOUT_S:g} s: is its process "
                "stopped, or another service on that port?"
            )
        case Outcome.ENDED:
            words = _ended(address)
        case _:
            words = _stranger(address)
    return ConnectionFailed(address, epoch, words, final=probed.outcome not in _RETRIED)


def _nobody(address: str) -> str:
    if is_loopback(address.rpartition(":")[0]):
        return f"nobody listens at {address}: start `ollama rpc-server` there, or take it off the list"
    return (
        f"nobody listens at {address}: start `ollama rpc-server -H 0.0.0.0` there (without -H it listens for its own "
        "machine only), or take it off the list"
    )


def _ended(address: str) -> str:
    return f"{address} takes connections and closes them at once: is it an ollama-zmq worker, and of this version?"


def _stranger(address: str) -> str:
    return f"{address} answers, but not as an ollama-zmq worker: is another service on that port?"


def _leased(address: str) -> str:
    return (
        f"worker {address} is in use by another server: stop that `ollama serve` (the worker's log says on which "
        "machine), or take the worker off the list"
    )
