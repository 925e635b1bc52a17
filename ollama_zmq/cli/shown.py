"""What ``/show`` prints in a conversation."""

from __future__ import annotations

from typing import Any

from ollama_zmq.cli.show import sections

Json = dict[str, Any]
_WITHOUT = {
    "license": "No license was specified for this model.",
    "template": "No prompt template was specified for this model.",
    "system": "No system message was specified for this model.",
}


def shown(what: str, info: Json, options: Json) -> str | None:
    """The text of ``/show what`` of a model with *info* and *options* that were set; None if it is none."""
    match what:
        case "info":
            return sections(info).removesuffix("\n")
        case "modelfile":
            return str(info.get("modelfile", ""))
        case "license" | "template":
            return str(info.get(what) or _WITHOUT[what])
        case "system":
            return f"{info['system']}\n" if info.get("system") else _WITHOUT[what]
        case "parameters":
            return _parameters(info.get("parameters", ""), options)
    return None


def go_value(value: object) -> str:
    """As Go prints it: ``[a b]``, ``true``, ``0.5``."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return repr(value).removesuffix(".0")
        case list():
            return f"[{' '.join(map(go_value, value))}]"
    return str(value)


def _parameters(of_model: str, of_user: Json) -> str:
    lines = ["Model defined parameters:"]
    lines += [
        f"  {line}" for line in (of_model or "No additional parameters were specified for this model.").splitlines()
    ]
    if of_user:
        lines += [
            "",
            "User defined parameters:",
            *(f"  {name:<30} {go_value(value)}" for name, value in of_user.items()),
        ]
    return "\n".join(lines) + "\n"
