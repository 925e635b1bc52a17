"""Errors as HTTP answers: one table, the nearest ancestor counts, bodies are ``{"error": "..."}``."""

from __future__ import annotations

import msgspec
import structlog

from ollama_zmq import errors

log = structlog.get_logger()


class RequestCanceled(errors.OllamaZmqError):
    """The client left before its answer was complete."""


class NotThereYet(errors.OllamaZmqError):
    """A route of Ollama that this version does not have."""


class BodyTooLarge(errors.RequestError):
    """A JSON body that is larger than any request has reason to be."""


STATUS: dict[type[errors.OllamaZmqError], int] = {
    errors.OllamaZmqError: 500,
    errors.RequestError: 400,
    errors.ModelNotFound: 404,
    errors.CapacityError: 503,
    errors.Unreachable: 503,
    BodyTooLarge: 413,
    NotThereYet: 501,
    RequestCanceled: 499,
}


class ErrorBody(msgspec.Struct):
    """What clients look for."""

    error: str


def status_of(error: Exception) -> int:
    """The HTTP status of *error*: that of its nearest ancestor in the table, 500 for what we did not foresee."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def body_of(error: Exception) -> ErrorBody:
    """The body of *error*. What we did not foresee is logged with its traceback and told as "internal error"."""
    if isinstance(error, errors.OllamaZmqError):
        return ErrorBody(error.message or type(error).__name__)
    log.error("request.broken", error=repr(error), exc_info=error)
    return ErrorBody("internal error")
