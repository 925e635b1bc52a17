"""What a command line says about a request, as fields of its body."""

from __future__ import annotations

import json
from typing import Any

from ollama_zmq.errors import RequestError

_SWITCHES = {"": True, "true": True, "false": False}
_LEVELS = ("high", "medium", "low", "max")


def request_fields(keepalive: str, format_: str, think: str | None) -> dict[str, Any]:
    """The options of ``ollama run``; absent ones are left out.

    Raises:
        RequestError: one of them cannot be.
    """
    fields: dict[str, Any] = {}
    if keepalive:
        fields["keep_alive"] = keepalive
    if format_:
        fields["format"] = parsed_format(format_)
    if think is not None:
        fields["think"] = parsed_think(think)
    return fields


def parsed_think(text: str) -> bool | str:
    """What ``--think=text`` and ``/set think text`` mean.

    Raises:
        RequestError: *text* is no level.
    """
    if text in _SWITCHES:
        return _SWITCHES[text]
    if text in _LEVELS:
        return text
    raise RequestError(f'invalid value for think: "{text}" (must be true, false, high, medium, low, or max)')


def parsed_format(text: str) -> object:
    """``json``, or a JSON schema.

    Raises:
        RequestError: it is neither.
    """
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"--format: neither json nor a JSON schema: {error}") from None
