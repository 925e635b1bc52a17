"""Every error the project raises, in one tree ordered by whose fault it is.

    OllamaZmqError
    ├── RequestError        the caller's fault             HTTP 400
    │   ├── ModelNotFound                                  HTTP 404
    │   └── ContextOverflow                                HTTP 400
    ├── ModelFileError      the file's fault               HTTP 500
    ├── StorageError        the disk's fault               HTTP 500
    ├── OpError             the programmer's fault         HTTP 500
    │   ├── ShapeError      (also ValueError)
    │   └── UnsupportedOp   (also NotImplementedError)
    ├── ProtocolError       a peer's fault                 HTTP 500
    │   ├── LocalProtocolError     we were about to send it
    │   └── RemoteProtocolError    we received it
    ├── CapacityError       nobody's fault, try later      HTTP 503
    │   ├── OutOfDeviceMemory
    │   │   └── MemoryInUse
    │   ├── ServerBusy
    │   └── StageLost
    └── Unreachable         nobody answers where we were told to connect

Whose fault it is decides what happens next: a caller is told, a file is named, a peer is dropped, a
capacity error may be tried again. The message is one line, lower case, no full stop, and names the
thing and its value; facts that a log or a test wants travel as keyword arguments in ``facts``.
"""

from __future__ import annotations

from typing import Any

MAX_MESSAGE = 2000  # characters; a name that came from outside may have ten million


class OllamaZmqError(Exception):
    """Base of all our errors.

    Attributes:
        message: one line for a person.
        facts: the same facts as fields, for logs and tests.
    """

    def __init__(self, message: str = "", **facts: Any) -> None:
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE // 2]} … {message[-MAX_MESSAGE // 3 :]}"
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.facts)


def _rebuild(cls: type[OllamaZmqError], message: str, facts: dict[str, Any]) -> OllamaZmqError:
    return cls(message, **facts)


class RequestError(OllamaZmqError):
    """The caller asked for something that cannot be."""


class ModelNotFound(RequestError):
    """The named model is not in the store."""


class ContextOverflow(RequestError):
    """The prompt does not fit the context and may not be cut."""


class ModelFileError(OllamaZmqError):
    """A model file or store entry is damaged or of a kind we do not know."""


class StorageError(OllamaZmqError):
    """A disk is full, or cannot be written: ``facts["path"]``, and ``facts["wanted"]`` bytes if that is known."""


class OpError(OllamaZmqError):
    """A program or an op call is wrong."""


class ShapeError(OpError, ValueError):
    """A tensor has the wrong rank, size, dtype or layout for its op."""


class UnsupportedOp(OpError, NotImplementedError):
    """The device has no kernel for this op or tensor type."""


class ProtocolError(OllamaZmqError):
    """A rule of the wire was broken."""


class LocalProtocolError(ProtocolError):
    """We were about to send what the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """A peer sent what the protocol forbids."""


class CapacityError(OllamaZmqError):
    """There is not enough of something at the moment."""


class OutOfDeviceMemory(CapacityError):
    """A device's memory budget does not allow it."""


class MemoryInUse(OutOfDeviceMemory):
    """There would be memory if other models went: ``facts["models"]``, by their numbers."""


class ServerBusy(CapacityError):
    """Too many requests wait already."""


class StageLost(CapacityError):
    """A worker that holds part of the model is gone."""


class Unreachable(OllamaZmqError):
    """Nobody, or somebody else, answers at an address."""


def error_class(name: str) -> type[OllamaZmqError]:
    """Return the class called *name* in this tree, or ``OllamaZmqError`` when there is none."""
    found = [OllamaZmqError]
    for cls in found:
        if cls.__name__ == name:
            return cls
        found.extend(cls.__subclasses__())
    return OllamaZmqError
