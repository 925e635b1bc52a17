"""What a worker may answer. Nothing it says is taken before it was checked here or by the pipeline it is about.

A message about a program counts only from a worker that was sent that program on this connection; from any other it
breaks the protocol and costs the link. From one that had it and has it no more (the load began again, the model was
unloaded) it is late, and ignored.
"""

from __future__ import annotations

import msgspec

from ollama_zmq.devices.base import Array
from ollama_zmq.errors import (
    MemoryInUse,
    OllamaZmqError,
    RemoteProtocolError,
    RequestError,
    ServerBusy,
    Unreachable,
    error_class,
)
from ollama_zmq.printable import printable_line
from ollama_zmq.version import PROTOCOL
from ollama_zmq.wire.messages import AnyMessage, DeviceInfo, Failed, Refused, Welcome

MAX_TEXT = 500  # characters that are shown of what a worker says
MAX_MEMORY_BYTES = 1 << 50
MAX_THREADS = 1 << 16
MAX_DEVICES = 64
MAX_US = 86_400_000_000  # a day
MAX_PER_S = 1e18  # of bytes, multiply-adds, values
MAX_CALL_S = 1.0
NOT_OF_A_WORKER = (RequestError, MemoryInUse, ServerBusy, Unreachable)  # a client would take them for its own fault


def error_of(failed: Failed, where: str) -> OllamaZmqError:
    """Return what a worker says went wrong. A class that only this machine may raise becomes ``OllamaZmqError``."""
    named = error_class(failed.kind)
    return (OllamaZmqError if issubclass(named, NOT_OF_A_WORKER) else named)(f"{where}{failed.detail}")


def cleaned(message: AnyMessage) -> AnyMessage:
    """Return *message* with texts that may be shown.

    Raises:
        RemoteProtocolError: a ``Welcome`` has a number that no machine has.
    """
    match message:
        case Welcome():
            return _checked_welcome(message)
        case Refused():
            return msgspec.structs.replace(
                message, reason=printable_line(message.reason, MAX_TEXT), package=printable_line(message.package, 50)
            )
        case Failed():
            return msgspec.structs.replace(message, detail=printable_line(message.detail, MAX_TEXT))
    return message


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number out of *low*..*high*, both included, and one that is none.

    Raises:
        RemoteProtocolError: names it.
    """
    if not low <= value <= high:
        raise RemoteProtocolError(f"{name}={value} is outside {low}..{high}")


def check_output(output: Array, rows: int, width: int) -> None:
    """Refuse an output of a step that is not float32 [rows, width].

    Raises:
        RemoteProtocolError: names both shapes.
    """
    if output.shape != (rows, width) or output.dtype != "float32":
        raise RemoteProtocolError(f"output is {output.dtype} {list(output.shape)}, not float32 [{rows}, {width}]")


def _checked_welcome(welcome: Welcome) -> Welcome:
    check_range("protocol", welcome.protocol, PROTOCOL, PROTOCOL)
    for name in ("memory_total", "memory_budget"):
        check_range(name, getattr(welcome, name), 0, MAX_MEMORY_BYTES)
    check_range("threads", welcome.threads, 1, MAX_THREADS)
    check_range("devices", len(welcome.devices), 0, MAX_DEVICES)
    for name in ("decode_bytes_per_s", "prefill_macs_per_s", "values_per_s"):
        check_range(name, getattr(welcome, name), 0, MAX_PER_S)
    check_range("call_s", welcome.call_s, 0, MAX_CALL_S)
    for matrix in welcome.matrices:
        for name in ("decode_bytes_per_s", "prefill_macs_per_s"):
            check_range(f"{name} of type {matrix.type}", getattr(matrix, name), 0, MAX_PER_S)
    return msgspec.structs.replace(
        welcome,
        package=printable_line(welcome.package, 50),
        host=printable_line(welcome.host, 255),
        id=printable_line(welcome.id, 64),
        devices=tuple(
            DeviceInfo(printable_line(one.kind, 50), printable_line(one.name, MAX_TEXT)) for one in welcome.devices
        ),
    )
