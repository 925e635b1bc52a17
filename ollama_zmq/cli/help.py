"""``ollama help [COMMAND]``."""

from __future__ import annotations

import click


@click.command(short_help="Help about any command")
@click.argument("command", required=False)
@click.pass_context
def help_command(ctx: click.Context, command: str | None) -> None:
    """Show the help of COMMAND, or of ollama itself."""
    parent = ctx.parent
    assert parent is not None
    if command is None:
        click.echo(parent.get_help())
        return
    group = parent.command
    assert isinstance(group, click.Group)
    found = group.get_command(parent, command)
    if found is None:
        raise click.UsageError(f"No such command {command!r}.", parent)
    with click.Context(found, info_name=command, parent=parent) as inner:
        click.echo(found.get_help(inner))
