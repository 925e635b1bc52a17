"""Messages and tools as the Go values that templates of Ollama's models expect.

Fields have Go's names (``.Function.Name``). A whole tool, the list of tools and the arguments of a call print as JSON
under their own names, as Ollama's types do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gotpl.runtime.gofmt import sprintf

from ollama_zmq.text.templates import Message

TYPES = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}


class Json(dict[str, Any]):
    """A Go value whose fields have Go's names and that prints as JSON under its own."""

    def __init__(self, fields: Mapping[str, Any], printed: object) -> None:
        super().__init__(fields)
        self.printed = printed

    def __str__(self) -> str:
        return go_json(self.printed)


class JsonList(list[Json]):
    """Go values that print together as one JSON array."""

    def __str__(self) -> str:
        return go_json([item.printed for item in self])


class Strings(list[str]):
    """A Go slice of strings, which prints as ``[a b]``."""

    def __str__(self) -> str:
        return f"[{' '.join(map(str, self))}]"


class _Nil:
    """Go's nil among the arguments of a function that prints."""

    def __go_format_value__(self, kind: str, mode: str, *, nested: bool) -> str:
        return "<nil>"

    def __str__(self) -> str:
        return "<nil>"


NIL = _Nil()


def go_text(value: Any, *, nested: bool = False) -> str:
    """What Go prints of *value*: ``<no value>`` of what is missing, ``true``, ``[a b]``, ``map[a:1]``."""
    match value:
        case None:
            return "<nil>" if nested else "<no value>"
        case bool():
            return str(value).lower()
        case Json() | JsonList() | Strings() | str():
            return str(value)
        case Mapping():
            return f"map[{' '.join(f'{key}:{go_text(value[key], nested=True)}' for key in sorted(value))}]"
        case list() | tuple():
            return f"[{' '.join(go_text(item, nested=True) for item in value)}]"
    return sprintf("%v", value, format_mode="go")


def argument(value: Any) -> object:
    """*value* as Go hands it to a function that prints its arguments."""
    if value is None:
        return NIL
    return go_text(value, nested=True) if isinstance(value, Mapping | list | tuple) else value


def go_json(value: object) -> str:
    """JSON as Go's ``json.Marshal`` writes it: no blanks, ``<``, ``>`` and ``&`` escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def go_message(message: Message) -> Json:
    """A message of Ollama's API; every field is there, empty or not."""
    calls = [_go_call(index, call["function"], call) for index, call in enumerate(message.get("tool_calls") or ())]
    fields = {
        "Role": message.get("role") or "",
        "Content": message.get("content") or "",
        "Thinking": message.get("thinking") or "",
        "Images": Strings(message.get("images") or ()),
        "ToolCalls": JsonList(calls),
        "ToolName": message.get("tool_name") or "",
        "ToolCallID": message.get("tool_call_id") or "",
    }
    return Json(fields, dict(message))


def _go_call(index: int, function: Mapping[str, Any], call: Mapping[str, Any]) -> Json:
    arguments = function.get("arguments") or {}
    fields = {
        "Index": function.get("index", index),
        "Name": function.get("name", ""),
        "Arguments": Json(arguments, arguments) if isinstance(arguments, Mapping) else arguments,
    }
    return Json({"ID": call.get("id", ""), "Function": Json(fields, dict(function))}, dict(call))


def go_tool(tool: Mapping[str, Any]) -> Json:
    """A tool of Ollama's API."""
    function = tool.get("function") or {}
    parameters = function.get("parameters") or {}
    properties = {
        name: Json(
            {
                "Type": _type_of(property_.get("type")),
                "Description": property_.get("description", ""),
                "Enum": Strings(property_.get("enum") or ()),
                "Items": property_.get("items"),
            },
            property_,
        )
        for name, property_ in (parameters.get("properties") or {}).items()
    }
    go_parameters = {
        "Type": parameters.get("type", ""),
        "Required": Strings(parameters.get("required") or ()),
        "Properties": Json(properties, parameters.get("properties") or {}),
    }
    go_function = {
        "Name": function.get("name", ""),
        "Description": function.get("description", ""),
        "Parameters": Json(go_parameters, parameters),
    }
    return Json({"Type": tool.get("type", "function"), "Function": Json(go_function, function)}, dict(tool))


def _type_of(kind: object) -> object:
    """A JSON schema type as Go prints it: one name bare, also that of a list; several in brackets."""
    if not isinstance(kind, list):
        return kind or ""
    names = " ".join(map(str, kind))
    return f"[{names}]" if len(kind) > 1 else names


def typescript(property_: object) -> str:
    """``toTypeScriptType``: the TypeScript name of a property's type."""
    kind = getattr(property_, "printed", property_)
    kind = kind.get("type") if isinstance(kind, Mapping) else kind
    if isinstance(kind, list):
        return " | ".join(map(typescript, kind))
    return {"array": "any[]", "object": "Record<string, any>"}.get(str(kind), TYPES.get(str(kind), "any"))


def printed(value: Any) -> object:
    """What *value* prints as JSON."""
    if isinstance(value, JsonList):
        return [item.printed for item in value]
    return value.printed if isinstance(value, Json) else value
