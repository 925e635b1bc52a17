"""The command line: ``ollama COMMAND``, laid out as Ollama's. One file per command, imported when it is called.

``main`` turns every error into one line on stderr and an exit code: 0 it worked, 1 it failed or was asked wrongly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import click

from ollama_zmq.cli.command import Group, wrong_use
from ollama_zmq.cli.near_model import with_near_model
from ollama_zmq.cli.terminal import prepare_streams
from ollama_zmq.errors import ModelNotFound, OllamaZmqError
from ollama_zmq.printable import REPLACEMENT, printable_line, whole_characters


class Entry(NamedTuple):
    """A command: the function in ``ollama_zmq.cli.<module>``, and the line that help shows for it."""

    function: str
    summary: str
    module: str = ""


COMMANDS = {
    "serve": Entry("serve", "Start ollama"),
    "create": Entry("create", "Create a model from a Modelfile"),
    "show": Entry("show", "Show information for a model"),
    "run": Entry("run", "Run a model"),
    "stop": Entry("stop", "Stop a running model"),
    "pull": Entry("pull", "Pull a model from a registry"),
    "push": Entry("push", "Push a model to a registry", "pull"),
    "signin": Entry("signin", "Sign in to ollama.com", "account"),
    "signout": Entry("signout", "Sign out from ollama.com", "account"),
    "list": Entry("list_models", "List models", "list_models"),
    "ps": Entry("ps", "List running models"),
    "cp": Entry("cp", "Copy a model"),
    "rm": Entry("rm", "Remove a model"),
    "launch": Entry("launch", "Launch an integration", "account"),
    "rpc-server": Entry("rpc_server", "Lend this machine's memory and compute to an ollama server"),
    "cluster": Entry("cluster", "Show the workers, their layers and latencies"),
    "demo": Entry("demo", "Answer a prompt over workers started for it"),
    "help": Entry("help_command", "Help about any command", "help"),
}
MAX_ERROR = 2000  # characters of the line that tells what went wrong
ALIASES = {"start": "serve", "ls": "list", "login": "signin", "logout": "signout"}


class Root(Group):
    """Knows every command's name and summary; imports a command only to run it or to print its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order that help shows."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called *cmd_name*, or an alias of it."""
        entry = COMMANDS.get(name := ALIASES.get(cmd_name, cmd_name))
        if entry is None:
            return None
        module = import_module(f"ollama_zmq.cli.{entry.module or name.replace('-', '_')}")
        command: click.Command = getattr(module, entry.function)
        return command

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of ``ollama`` itself."""
        name = ctx.command_path
        commands = "\n".join(f"  {name:<11} {entry.summary}" for name, entry in COMMANDS.items())
        formatter.write(
            "Large language model runner, spread over several machines\n\n"
            f"Usage:\n  {name} [flags]\n  {name} [command]\n\n"
            f"Available Commands:\n{commands}\n\n"
            "Flags:\n"
            "  -h, --help      help for ollama\n"
            "  -v, --version   Show version information\n\n"
            f'Use "{name} [command] --help" for more information about a command.\n'
        )


@click.group(
    cls=Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="[command]",
)
@click.option("-v", "--version", is_flag=True, help="Show version information")
@click.pass_context
def root(ctx: click.Context, version: bool) -> None:
    """Large language model runner."""
    if version:
        from ollama_zmq.cli.version import show_version

        show_version()
        ctx.exit()
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    prepare_streams()
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    sys.exit(run_root(arguments, name if name.startswith("ollama") else "ollama"))


def run_root(arguments: Sequence[str] | None, name: str = "ollama") -> int:
    """Run the command line and return its exit code; errors are one line on stderr."""
    given = [_passable(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    try:
        root.main(args=given, prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except click.ClickException as error:
        return _failed(wrong_use(error))
    except BrokenPipeError:
        _forget_stdout()
        return 0
    except ModelNotFound as error:
        return _failed(with_near_model(error.message))
    except OllamaZmqError as error:
        return _failed(error.message or type(error).__name__)
    except OSError as error:
        return _failed(f"{error.filename or ''}{': ' if error.filename else ''}{_reason(error)}")
    return 0


def _passable(argument: str) -> str:
    """*argument* as the system could have passed it: bytes that are no text stay, for they may be of a file's name."""
    argument = argument.replace("\0", REPLACEMENT)
    try:
        os.fsencode(argument)
    except UnicodeEncodeError:
        return whole_characters(argument)
    return argument


def _failed(message: str) -> int:
    click.echo(f"Error: {printable_line(message, MAX_ERROR)}", err=True)
    return 1


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _forget_stdout() -> None:
    """Let nothing be flushed into the broken pipe when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
