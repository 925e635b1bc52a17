"""The conversation of ``ollama run MODEL``: ``>>>`` lines, ``/commands``, and messages over several lines in \"\"\".

A Session knows what was said and set, and no terminal but the lines it is given; ``repl.converse`` reads those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ollama_zmq.cli import repl_help
from ollama_zmq.cli.answer import Answer, timings, waiting
from ollama_zmq.cli.fields import parsed_think
from ollama_zmq.cli.list_models import models_table
from ollama_zmq.cli.near_model import near_model
from ollama_zmq.cli.shown import shown
from ollama_zmq.cli.terminal import say
from ollama_zmq.client import Client
from ollama_zmq.errors import ModelNotFound, OllamaZmqError, RequestError
from ollama_zmq.printable import printable_line

PROMPT, MORE = ">>> ", "... "
QUOTES = '"""'
Json = dict[str, Any]


class Session:
    """One conversation.

    Attributes:
        fields: of every request: options, format, think, keep_alive.
        messages: what was said, system messages where they were set.
        verbose, wraps, keeps_history: what ``/set`` turns on and off.
        hides_thinking: True if what the model thinks is not shown.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        fields: Json,
        *,
        verbose: bool = False,
        wraps: bool = True,
        hides_thinking: bool = False,
    ) -> None:
        self.client = client
        self.model = model
        self.fields: Json = {"options": {}} | fields
        self.messages: list[Json] = []
        self.verbose = verbose
        self.wraps = wraps
        self.hides_thinking = hides_thinking
        self.keeps_history = True
        self._pending: list[str] | None = None
        self._take: Callable[[str], None] = self.say

    @property
    def system(self) -> str:
        """The system message that counts, the last one; "" if there is none."""
        return next((said["content"] for said in reversed(self.messages) if said["role"] == "system"), "")

    @property
    def prompt(self) -> str:
        """What stands before the next line."""
        return PROMPT if self._pending is None else MORE

    def feed(self, line: str) -> bool:
        """Do what *line* says; False ends the conversation. Errors of the server are printed, and it goes on."""
        try:
            return self._feed(line)
        except KeyboardInterrupt:
            say()
        except OllamaZmqError as error:
            say(f"Error: {printable_line(error.message)}", err=True)
        return True

    def interrupt(self, line: str) -> None:
        """Ctrl-C while *line* was typed."""
        self._pending = None
        if not line:
            say("\nUse Ctrl + d or /bye to exit.")

    def _feed(self, line: str) -> bool:
        if self._pending is not None:
            self._collect(line)
        elif line.startswith(QUOTES):
            self._begin(line.removeprefix(QUOTES), self.say)
        elif line.startswith("/"):
            return self._command(line.split(), line)
        elif line.strip():
            self.say(line)
        return True

    def _begin(self, text: str, take: Callable[[str], None]) -> None:
        """A text in triple quotes begins, and may end on the same line."""
        self._take, self._pending = take, []
        self._collect(text)

    def _collect(self, line: str) -> None:
        assert self._pending is not None
        self._pending.append(line.removesuffix(QUOTES))
        if line.endswith(QUOTES):
            text, self._pending = "\n".join(self._pending), None
            self._take(text)

    def say(self, text: str) -> None:
        """Send *text* and show the answer. What came before an interruption or error stays in the conversation."""
        self.messages.append({"role": "user", "content": text})
        answer = Answer(wraps=self.wraps, hides_thinking=self.hides_thinking)
        try:
            answer.show(self.client.chat(self.model, self.messages, **self.fields))
        except OllamaZmqError:
            if not answer.content:
                self.messages.pop()
            raise
        finally:
            if answer.content:
                self.messages.append({"role": "assistant", "content": answer.content})
        say("\n")
        if self.verbose:
            say(timings(answer.last), err=True)

    def _command(self, words: list[str], line: str) -> bool:
        name, arguments = words[0], words[1:]
        if name in ("/bye", "/exit"):
            return False
        match name:
            case "/?" | "/help":
                say(_help_about(arguments), err=True)
            case "/list":
                say(models_table(self.client, *arguments[:1]))
            case "/load":
                self._load(arguments)
            case "/save":
                self._save(arguments)
            case "/clear":
                self.messages = [{"role": "system", "content": self.system}] if self.system else []
                say("Cleared session context")
            case "/set":
                self._set(arguments, line)
            case "/show":
                self._show(arguments)
            case _:
                say(f"Unknown command '{name}'. Type /? for help")
        return True

    def _load(self, arguments: list[str]) -> None:
        if len(arguments) != 1:
            say("Usage:\n  /load <modelname>")
            return
        say(f"Loading model '{arguments[0]}'")
        try:
            with waiting():
                self.client.load(arguments[0], **self.fields)
        except ModelNotFound:
            near = near_model(arguments[0], [model["name"] for model in self.client.tags()])
            say(f"Couldn't find model '{arguments[0]}'" + (f"; did you mean {near}?" if near else ""))
            return
        self.model, self.messages = arguments[0], []

    def _save(self, arguments: list[str]) -> None:
        if len(arguments) != 1:
            say("Usage:\n  /save <modelname>")
            return
        fields = {
            "from": self.model,
            "system": self.system,
            "parameters": self.fields["options"],
            "messages": self.messages,
        }
        for _ in self.client.create(arguments[0], **{name: value for name, value in fields.items() if value}):
            pass
        say(f"Created new model '{arguments[0]}'")

    def _set(self, arguments: list[str], line: str) -> None:
        match arguments:
            case []:
                say(repl_help.SET, err=True)
            case ["history" | "nohistory" as which]:
                self.keeps_history = which == "history"
            case ["wordwrap" | "nowordwrap" as which]:
                self.wraps = which == "wordwrap"
                say(f"Set '{which}' mode.")
            case ["verbose" | "quiet" as which]:
                self.verbose = which == "verbose"
                say(f"Set '{which}' mode.")
            case ["think", *level]:
                self._set_think(*level[:1])
            case ["nothink"]:
                self.fields["think"] = False
                say("Set 'nothink' mode.")
            case ["format", "json"]:
                self.fields["format"] = "json"
                say("Set format to 'json' mode.")
            case ["format", *_]:
                say("Invalid or missing format. For 'json' mode use '/set format json'")
            case ["noformat"]:
                self.fields.pop("format", None)
                say("Disabled format.")
            case ["parameter", name, first, *rest]:
                self._set_parameter(name, [first, *rest])
            case ["parameter", *_]:
                say(repl_help.PARAMETERS, err=True)
            case ["system", *words] if words:
                self._set_system(line.split("system", 1)[1].strip())
            case ["system"]:
                say(repl_help.SET, err=True)
            case [other, *_]:
                say(f"Unknown command '/set {other}'. Type /? for help")

    def _set_think(self, level: str = "true") -> None:
        """Think from the next message on; a model that cannot gets a warning at once."""
        try:
            self.fields["think"] = parsed_think(level)
        except RequestError as error:
            say(error.message)
            return
        if "thinking" not in (self.client.show(self.model).get("capabilities") or []):
            say(f'warning: model "{self.model}" does not support thinking output', err=True)
        say("Set 'think' mode." if level == "true" else f"Set 'think' mode to '{level}'.")

    def _set_parameter(self, name: str, texts: list[str]) -> None:
        from ollama_zmq.formats.options import parse_parameter

        try:
            value = texts if name == "stop" else parse_parameter(name, texts[0])
        except RequestError as error:
            say(f"Couldn't set parameter: {error.message}")
            return
        self.fields["options"][name] = value
        say(f"Set parameter '{name}' to '{', '.join(texts)}'")

    def _set_system(self, text: str) -> None:
        if text.startswith(QUOTES):
            self._begin(text.removeprefix(QUOTES), self._take_system)
        else:
            self._take_system(text)

    def _take_system(self, text: str) -> None:
        if self.messages and self.messages[-1]["role"] == "system":
            self.messages.pop()
        self.messages.append({"role": "system", "content": text})
        say("Set system message.")

    def _show(self, arguments: list[str]) -> None:
        if not arguments:
            say(repl_help.SHOW, err=True)
            return
        options = self.fields["options"]
        changed = {} if arguments[0] == "parameters" else {"options": options}
        info = self.client.show(self.model, system=self.system, **changed)
        text = shown(arguments[0], info, options)
        say(f"Unknown command '/show {arguments[0]}'. Type /? for help" if text is None else text)


def _help_about(arguments: list[str]) -> str:
    match arguments[:1]:
        case ["set" | "/set"]:
            return repl_help.SET
        case ["show" | "/show"]:
            return repl_help.SHOW
        case ["shortcut" | "shortcuts"]:
            return repl_help.SHORTCUTS
    return repl_help.COMMANDS
