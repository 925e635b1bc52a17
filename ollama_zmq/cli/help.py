"""``ollama help [COMMAND]``."""

from __future__ import annotations

import click

from ollama_zmq.cli.command import Command
from ollama_zmq.cli.terminal import say


@click.command("help", cls=Command, short_help="Help about any command", environment=())
@click.argument("commands", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_command(ctx: click.Context, commands: tuple[str, ...]) -> None:
    """Show the help of COMMAND, or of ollama itself. An unknown topic prints a line on stderr and exits 0."""
    parent = ctx.parent
    assert parent is not None
    shown: click.Context = parent
    for name in commands:
        found = shown.command.get_command(shown, name) if isinstance(shown.command, click.Group) else None
        if found is None:
            say(f"Unknown help topic {list(commands)}\n{parent.get_help()}", err=True)
            return
        shown = click.Context(found, info_name=name, parent=shown)
    say(shown.get_help())
