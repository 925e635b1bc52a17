"""``ollama show``: everything about a model, in sections, or one of its texts."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from ollama_zmq.cli.command import Command
from ollama_zmq.cli.tables import columns
from ollama_zmq.cli.terminal import say, say_text
from ollama_zmq.client import Client
from ollama_zmq.errors import RequestError
from ollama_zmq.units import human_number

TEXTS = ("license", "modelfile", "parameters", "template", "system")
TEXT_WIDTH = 100
SHOWN_LINES = 2
ARRAY_WIDTH = 10


@click.command(cls=Command, short_help="Show information for a model")
@click.argument("model")
@click.option("--license", is_flag=True, help="Show license of a model")
@click.option("--modelfile", is_flag=True, help="Show Modelfile of a model")
@click.option("--parameters", is_flag=True, help="Show parameters of a model")
@click.option("--template", is_flag=True, help="Show template of a model")
@click.option("--system", is_flag=True, help="Show system message of a model")
@click.option("-v", "--verbose", is_flag=True, help="Show detailed model information")
def show(model: str, verbose: bool, **texts: bool) -> None:
    """Show what is known about MODEL."""
    wanted = [name for name in TEXTS if texts[name]]
    if len(wanted) > 1:
        options = ", ".join(f"'--{name}'" for name in TEXTS[:-1])
        raise RequestError(f"only one of {options}, or '--{TEXTS[-1]}' can be specified")
    with Client() as client:
        info = client.show(model, verbose=verbose)
    if wanted:
        text = str(info.get(wanted[0]) or "")
        say_text(text, nl=not text.endswith("\n"))
    else:
        say(sections(info, verbose=verbose), nl=False)


def sections(info: dict[str, Any], *, verbose: bool = False) -> str:
    """The sections of a model: a title, its rows, an empty line."""
    parts = [("Model", _model(info))]
    parts.append(("Capabilities", [(name,) for name in info.get("capabilities", [])]))
    parts.append(("Parameters", [tuple(line.split()) for line in info.get("parameters", "").splitlines() if line]))
    if verbose:
        parts.append(("Metadata", [(key, _literal(value)) for key, value in sorted(info["model_info"].items())]))
        tensors = info.get("tensors", [])
        parts.append(("Tensors", [(item["name"], item["type"], _literal(item["shape"])) for item in tensors]))
    parts.append(("System", _head(info.get("system", ""))))
    parts.append(("License", _head(info.get("license", ""))))
    return "".join(_section(title, rows) for title, rows in parts if rows)


def _section(title: str, rows: list[tuple[str, ...]]) -> str:
    lines = columns([("", *row) for row in rows])
    return "\n".join([f"  {title}", *lines]) + "\n\n"


def _model(info: dict[str, Any]) -> list[tuple[str, ...]]:
    details, facts = info["details"], info["model_info"]
    architecture = facts.get("general.architecture", details["family"])
    size = details["parameter_size"] or human_number(facts.get("general.parameter_count", 0))
    rows = [("architecture", architecture), ("parameters", size)]
    for name in ("context length", "embedding length"):
        value = facts.get(f"{architecture}.{name.replace(' ', '_')}")
        if value is not None:
            rows.append((name, str(value)))
    rows.append(("quantization", details["quantization_level"]))
    if info.get("requires"):
        rows.append(("requires", info["requires"]))
    return list(rows)


def _head(text: str) -> list[tuple[str, ...]]:
    """The first lines of a long text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = [piece for line in lines[:SHOWN_LINES] for piece in textwrap.wrap(line, TEXT_WIDTH)]
    return [(line,) for line in [*shown, *(["..."] if len(lines) > SHOWN_LINES else [])]]


def _literal(value: object) -> str:
    """A value of the header; a long array as its first elements and the number of the others."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case list():
            return _array([_literal(item) for item in value])
    return str(value)


def _array(items: list[str]) -> str:
    shown, width = 0, 1
    for i, item in enumerate(items):
        width += len(item) + (2 if i else 0)
        if width > ARRAY_WIDTH and i:
            break
        shown += 1
    rest = len(items) - shown
    return f"[{' '.join(items[:shown])}{f' ...+{rest} more' if rest else ''}]"
