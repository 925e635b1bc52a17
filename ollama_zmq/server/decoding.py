"""A request's body to a typed record, as Go's encoding/json reads it: every route decodes here.

    field names   match in any case; unknown ones are ignored; of two that are equal the last one counts
    null          is "not given", in the request itself and in the records inside it

The JSON itself is read as :mod:`ollama_zmq.formats.foreign` says. What is small on the wire may be large in memory, an
empty object 600 bytes of it, so values are counted before any is made.
"""

from __future__ import annotations

import types
import typing
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from ollama_zmq.errors import RequestError
from ollama_zmq.formats.foreign import json_value

T = TypeVar("T")

MAX_CONTAINERS = 1 << 18  # objects and lists in a body
MAX_VALUES = 1 << 20  # values, numbers of a context among them


def decode(body: bytes, kind: type[T]) -> T:
    """The request in *body*.

    Raises:
        RequestError: it is empty, is no JSON object, or a field has the wrong type, which is named.
    """
    if not body.strip():
        raise RequestError("missing request body")
    _check_size(body)
    try:
        return msgspec.convert(_shaped(json_value(body), kind), kind)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"invalid JSON in the request body: {_plain(error)}") from None


def _check_size(body: bytes) -> None:
    """Refuse more objects, lists and values than memory is meant for. Those in texts do not count."""
    if _n_containers(body) <= MAX_CONTAINERS and body.count(b",") <= MAX_VALUES:
        return
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")  # no quote is left that is part of a text
    n_texts = plain.count(b'"') // 2
    outside = b"".join(plain.split(b'"')[::2]) if n_texts <= 2 * MAX_VALUES else b""
    for what, found, most in (
        ("objects and lists", _n_containers(outside), MAX_CONTAINERS),
        ("values", outside.count(b","), MAX_VALUES),
        ("texts", n_texts, 2 * MAX_VALUES),
    ):
        if found > most:
            raise RequestError(f"the request body has {found} {what}, at most {most}")


def _n_containers(body: bytes) -> int:
    return body.count(b"{") + body.count(b"[")


def _shaped(value: Any, kind: Any) -> Any:
    """*value* with the field names of *kind*, and without nulls and fields that *kind* does not have."""
    if isinstance(value, dict) and (fields := _fields(kind)):
        given = ((fields.get(key.lower()), item) for key, item in value.items())
        return {field[0]: _shaped(item, field[1]) for field, item in given if field is not None and item is not None}
    if isinstance(value, list) and typing.get_origin(kind) is list:
        (item_kind,) = typing.get_args(kind)
        return [_shaped(item, item_kind) for item in value]
    if value is None and _fields(kind):
        return {}
    return value


@lru_cache(maxsize=64)
def _fields(kind: Any) -> dict[str, tuple[str, Any]]:
    """Lower-case name -> name and type of each field of the record *kind*; empty for what is no record."""
    if isinstance(kind, types.UnionType):
        return next((fields for part in typing.get_args(kind) if (fields := _fields(part))), {})
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return {}
    return {field.encode_name.lower(): (field.encode_name, field.type) for field in msgspec.structs.fields(kind)}


def _plain(error: Exception) -> str:
    """The decoder's message without its capital and its quotes: ``expected str, got int - at $.prompt``."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    text = str(error).replace("`", "")
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
