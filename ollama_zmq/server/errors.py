"""Errors as HTTP answers: one table of statuses, in which the nearest ancestor counts, and a body for each family.

/api/...          {"error": "..."}
/v1/messages      {"type": "error", "error": {"type": "api_error", "message": "..."}, "request_id": "req_..."}
/v1/...           {"error": {"message": "...", "type": "api_error", "param": null, "code": null}}
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

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


Family = Callable[[int, str], dict[str, Any]]

_OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error", 405: "invalid_request_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def family_of(path: str) -> Family | None:
    """How the clients of *path* read errors; None for Ollama's own."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return _anthropic
    return _openai if path.startswith("/v1/") else None


def _openai(status: int, message: str) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _anthropic(status: int, message: str) -> dict[str, Any]:
    error = {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": message}
    return {"type": "error", "error": error, "request_id": f"req_{secrets.token_hex(12)}"}


def status_of(error: Exception) -> int:
    """The HTTP status of *error*: that of its nearest ancestor in the table, 500 for what we did not foresee."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def body_of(error: Exception) -> ErrorBody:
    """The body of *error*, one line. What nobody foresaw is logged with its traceback and told as "internal error"."""
    if isinstance(error, errors.OllamaZmqError):
        return ErrorBody(error.message or type(error).__name__)
    if isinstance(error, OSError) and error.strerror:  # a disk that is full or read-only, a file that is not ours
        log.warning("request.failed", error=str(error))
        return ErrorBody(f"{error.strerror.lower()}: {error.filename}" if error.filename else error.strerror.lower())
    log.error("request.broken", error=repr(error), exc_info=error)
    return ErrorBody("internal error")
