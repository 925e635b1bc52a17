"""What every command has in common: how its help is laid out, and one line for wrong use, both as Ollama's (cobra).

Usage:
  ollama show MODEL [flags]

Flags:
  -h, --help      help for show

Environment Variables:
  OLLAMA_HOST     IP Address for the ollama server (default 127.0.0.1:11434)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from inspect import cleandoc
from typing import Any

import click

from ollama_zmq.config import VARIABLES


class _Laid(click.Command):
    """Layout of help, and checks of arguments and flags.

    Args:
        environment: the variables that matter to the command, in the order of its help.
        bare: options that take a value only after ``=``, and what they mean without one: ``{"--think": "true"}``.
    """

    def __init__(
        self,
        *args: Any,
        environment: Iterable[str] = ("OLLAMA_HOST",),
        bare: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.environment = tuple(environment)
        self.bare = bare or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read *args*; raises UsageError when their number is wrong."""
        args = self._with_values(args)
        if not isinstance(self, click.Group):
            self._count(ctx, args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write description, usage, commands, flags and variables."""
        description = click.wrap_text(cleandoc(self.help or ""), formatter.width, preserve_paragraphs=True)
        formatter.write(f"{description}\n\n")
        formatter.write(f"Usage:\n  {' '.join([ctx.command_path, *self.collect_usage_pieces(ctx)])}\n")
        if isinstance(self, click.Group):
            names = self.list_commands(ctx)
            commands = [(name, found.get_short_help_str()) for name in names if (found := self.get_command(ctx, name))]
            _section(formatter, "Available Commands", commands)
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        flags = [record for option in options if (record := _flag(option, ctx))]
        _section(formatter, "Flags", flags)
        _section(formatter, "Environment Variables", [(name, VARIABLES[name]) for name in self.environment])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Arguments, then ``[flags]``."""
        pieces = [piece for param in self.get_params(ctx) for piece in param.get_usage_pieces(ctx)]
        return [*pieces, "[flags]"]

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """``-h, --help``."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = f"help for {self.name}"
        return option

    def _with_values(self, args: list[str]) -> list[str]:
        """*args* with ``--think=true`` in place of ``--think``."""
        end = args.index("--") if "--" in args else len(args)
        return [f"{arg}={self.bare[arg]}" if arg in self.bare and i < end else arg for i, arg in enumerate(args)]

    def _count(self, ctx: click.Context, args: list[str]) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        counter = click.Command(None, params=[*options, click.Argument(["given"], nargs=-1)], add_help_option=False)
        found, _, _ = counter.make_parser(ctx).parse_args(list(args))
        asks_help = self.get_help_option(ctx)
        if asks_help is not None and found.get(asks_help.name or "") is True:
            return
        given = found.get("given")
        n_given = len(given) if isinstance(given, tuple | list) else 0
        arguments = [param for param in self.params if isinstance(param, click.Argument)]
        least = sum(max(argument.nargs, 1) for argument in arguments if argument.required)
        most = sum(argument.nargs for argument in arguments) if all(a.nargs > 0 for a in arguments) else None
        if most is None and n_given < least:
            raise click.UsageError(f"requires at least {least} arg(s), only received {n_given}", ctx)
        if most is not None and not least <= n_given <= most:
            wanted = f"{least}" if least == most else f"between {least} and {most}"
            raise click.UsageError(f"accepts {wanted} arg(s), received {n_given}", ctx)


class Command(_Laid):
    """A command that does something."""


class Group(_Laid, click.Group):
    """A command with commands of its own."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that *args* name first, and what follows."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            raise click.UsageError(unknown_command(name, self.list_commands(ctx), ctx.command_path), ctx)
        return super().resolve_command(ctx, args)


def unknown_command(name: str, known: Sequence[str], of: str) -> str:
    """One line about a command that is none, with the one that may have been meant."""
    near = get_close_matches(name, known, 1)
    return f'unknown command "{name}" for "{of}"' + (f'; did you mean "{near[0]}"?' if near else "")


def wrong_use(error: click.ClickException) -> str:
    """What was wrong with a command line, in one line, as Ollama says it."""
    match error:
        case click.NoSuchOption():
            near = f"; did you mean {error.possibilities[0]}?" if error.possibilities else ""
            name = error.option_name
            return f"unknown flag: {name}{near}" if name.startswith("--") else f"unknown shorthand flag: {name}"
        case click.BadOptionUsage() if "requires an argument" in error.message:
            return f"flag needs an argument: {error.option_name}"
        case click.BadOptionUsage() if "does not take a value" in error.message:
            return f"flag takes no value: {error.option_name}"
        case click.BadParameter():
            hint = error.param_hint or (error.param.get_error_hint(error.ctx) if error.param and error.ctx else "")
            where = hint if isinstance(hint, str) else " / ".join(hint or ())
            return f"invalid argument for {where}: {error.message}".rstrip(".")
    return error.format_message()


def _section(formatter: click.HelpFormatter, title: str, rows: Sequence[tuple[str, str]]) -> None:
    if rows:
        formatter.write(f"\n{title}:\n")
        with formatter.indentation():
            formatter.write_dl(rows, col_max=32)


def _flag(option: click.Option, ctx: click.Context) -> tuple[str, str] | None:
    record = option.get_help_record(ctx)
    if record is None:
        return None
    names, text = record
    return (names if len(option.opts) > 1 else f"    {names}", text)
