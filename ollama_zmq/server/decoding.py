"""A request's body to a typed record, as Go's encoding/json reads it: every route decodes here.

    field names   match in any case; unknown ones are ignored; of two that are equal the last one counts
    null          is "not given", in the request itself and in the records inside it

The JSON itself is read as :mod:`ollama_zmq.formats.foreign` says.
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


def decode(body: bytes, kind: type[T]) -> T:
    """The request in *body*.

    Raises:
        RequestError: it is empty, is no JSON object, or a field has the wrong type, which is named.
    """
    if not body.strip():
        raise RequestError("missing request body")
    try:
        return msgspec.convert(_shaped(json_value(body), kind), kind)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"invalid JSON in the request body: {_plain(error)}") from None


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
