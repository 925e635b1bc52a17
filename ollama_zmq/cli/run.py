"""``ollama run``: one answer to a prompt, or a conversation when there is none."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from ollama_zmq.cli.answer import Answer, timings
from ollama_zmq.cli.command import Command
from ollama_zmq.client import Client
from ollama_zmq.errors import ModelNotFound, RequestError

LEVELS = {"true": True, "false": False}


@click.command(
    cls=Command,
    environment=("OLLAMA_HOST", "OLLAMA_EDITOR", "OLLAMA_NOHISTORY"),
    bare={"--think": "true"},
    short_help="Run a model",
)
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--keepalive", default="", help="Duration to keep a model loaded (e.g. 5m)")
@click.option("--verbose", is_flag=True, help="Show timings for response")
@click.option("--insecure", is_flag=True, hidden=True, help="Use an insecure registry")
@click.option("--nowordwrap", is_flag=True, help="Don't wrap words to the next line automatically")
@click.option("--format", "format_", default="", help="Response format (e.g. json)")
@click.option("--think", metavar="[=LEVEL]", help="Think: true (also without a value), false, low, medium, high, max")
@click.option("--hidethinking", is_flag=True, help="Hide thinking output (if provided)")
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
) -> None:
    """Answer PROMPT with MODEL, or start a conversation. What comes in through a pipe is put before PROMPT."""
    fields = request_fields(keepalive, format_, think)
    with Client() as client:
        try:
            info = client.show(model)
        except ModelNotFound as error:
            raise ModelNotFound(
                f"{error.message}; make it from a GGUF file with `ollama create {model} -f Modelfile`"
            ) from None
        is_terminal = sys.stdin.isatty()
        text = " ".join(([] if is_terminal else _piped()) + list(prompt))
        if is_terminal and not prompt:
            from ollama_zmq.cli.repl import converse

            converse(client, model, info, fields, verbose=verbose, wraps=not nowordwrap, hides_thinking=hidethinking)
            return
        answer = Answer(wraps=not nowordwrap, hides_thinking=hidethinking)
        answer.show(client.generate(model, text, **fields))
        click.echo("\n" if text else "", nl=bool(text))
    if verbose:
        click.echo(timings(answer.last), err=True)


def request_fields(keepalive: str, format_: str, think: str | None) -> dict[str, Any]:
    """The options of the command line as fields of a request; absent ones are left out."""
    fields: dict[str, Any] = {}
    if keepalive:
        fields["keep_alive"] = keepalive
    if format_:
        fields["format"] = parsed_format(format_)
    if think is not None:
        fields["think"] = LEVELS.get(think, think)
    return fields


def parsed_format(text: str) -> object:
    """``json``, or a JSON schema.

    Raises:
        RequestError: it is neither.
    """
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise RequestError(f"--format: neither json nor a JSON schema: {error}") from None


def _piped() -> list[str]:
    """What stdin holds, if anything."""
    text = sys.stdin.read()
    return [text] if text else []
