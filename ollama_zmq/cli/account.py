"""Commands of Ollama's that belong to ollama.com or to other programs: each ends with one sentence."""

from __future__ import annotations

import click

from ollama_zmq.cli.command import Command
from ollama_zmq.cli.terminal import say
from ollama_zmq.client import Client
from ollama_zmq.errors import RequestError

NO_LAUNCH = "ollama-zmq launches no other programs: start {program} yourself, with {host} as the address of its Ollama"


@click.command(cls=Command, short_help="Sign in to ollama.com")
def signin() -> None:
    """Sign in to ollama.com."""
    with Client() as client:
        name = client.me().get("name", "")
    say(f"You are already signed in as user '{name}'")


@click.command(cls=Command, short_help="Sign out from ollama.com")
def signout() -> None:
    """Sign out from ollama.com."""
    with Client() as client:
        client.sign_out()
    say("You have signed out of ollama.com")


@click.command(cls=Command, short_help="Launch an integration", context_settings={"ignore_unknown_options": True})
@click.argument("program", nargs=-1, metavar="[PROGRAM]...")
def launch(program: tuple[str, ...]) -> None:
    """Launch an integration: not done here."""
    from ollama_zmq.client import server_address

    raise RequestError(NO_LAUNCH.format(program=program[0] if program else "the program", host=server_address().url))
