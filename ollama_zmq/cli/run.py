"""``ollama run``: one answer to a prompt, or a conversation when there is none."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from ollama_zmq.cli.answer import Answer, show_missing, timings, waiting
from ollama_zmq.cli.command import Command
from ollama_zmq.cli.fields import request_fields
from ollama_zmq.cli.terminal import is_terminal, read_stdin, say
from ollama_zmq.client import Client
from ollama_zmq.errors import ModelNotFound, RequestError

Json = dict[str, Any]


@click.command(
    cls=Command,
    environment=("OLLAMA_HOST", "OLLAMA_EDITOR", "OLLAMA_NOHISTORY"),
    bare={"--think": "true", "--truncate": "true"},
    short_help="Run a model",
)
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--keepalive", metavar="DURATION", default="", help="Duration to keep a model loaded (e.g. 5m)")
@click.option("--verbose", is_flag=True, help="Show timings for response")
@click.option("--insecure", is_flag=True, hidden=True, help="Use an insecure registry")
@click.option("--nowordwrap", is_flag=True, help="Don't wrap words to the next line automatically")
@click.option("--format", "format_", metavar="FORMAT", default="", help="Response format (e.g. json)")
@click.option("--think", metavar="[=LEVEL]", help="Think: true (also without a value), false, low, medium, high, max")
@click.option("--hidethinking", is_flag=True, help="Hide thinking output (if provided)")
@click.option("--truncate", metavar="[=BOOL]", help="For embedding models: truncate inputs exceeding context length")
@click.option("--dimensions", metavar="N", type=int, help="For embedding models: length of the embeddings")
def run(
    model: str,
    prompt: tuple[str, ...],
    keepalive: str,
    verbose: bool,
    insecure: bool,
    nowordwrap: bool,
    format_: str,
    think: str | None,
    hidethinking: bool,
    truncate: str | None,
    dimensions: int | None,
) -> None:
    """Answer PROMPT with MODEL, or start a conversation. What comes in through a pipe is put before PROMPT."""
    fields = request_fields(keepalive, format_, think)
    embedding_fields = _embedding_fields(keepalive, truncate, dimensions)
    with Client() as client:
        info = _info(client, model)
        text = " ".join([*_piped(), *prompt])
        if "embedding" in (info.get("capabilities") or []):
            _embed(client, model, text, embedding_fields)
            return
        if not text and not prompt and is_terminal(sys.stdin, sys.stdout):
            from ollama_zmq.cli.repl import converse
            from ollama_zmq.cli.session import Session

            shown = {"verbose": verbose, "wraps": not nowordwrap, "hides_thinking": hidethinking}
            converse(Session(client, model, fields, **shown), info)
            return
        answer = Answer(wraps=not nowordwrap, hides_thinking=hidethinking)
        answer.show(client.generate(model, text, **fields))
        say("\n" if text else "", nl=bool(text))
        show_missing(client, model)
    if verbose:
        say(timings(answer.last), err=True)


def _info(client: Client, model: str) -> Json:
    try:
        return client.show(model)
    except ModelNotFound as error:
        make = f"make it from a GGUF file with `ollama create {model} -f Modelfile`"
        raise ModelNotFound(f"{error.message}; {make}") from None


def _piped() -> list[str]:
    """What stdin holds, if it is no terminal and holds anything."""
    text = "" if is_terminal(sys.stdin) else read_stdin()
    return [text] if text else []


def _embedding_fields(keepalive: str, truncate: str | None, dimensions: int | None) -> Json:
    if truncate not in (None, "true", "false"):
        raise RequestError(f'invalid value for --truncate: "{truncate}" (must be true or false)')
    fields = {
        "keep_alive": keepalive or None,
        "truncate": None if truncate is None else truncate == "true",
        "dimensions": dimensions,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _embed(client: Client, model: str, text: str, fields: Json) -> None:
    """Print the embedding of *text* as a JSON array."""
    if not text:
        raise RequestError(f'embedding models require input text. Usage: ollama run {model} "your text here"')
    with waiting():
        vectors = client.embed(model, text, **fields)
    say(json.dumps(vectors[0] if vectors else []))
