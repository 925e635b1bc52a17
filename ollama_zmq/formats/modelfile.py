"""Modelfiles: text to a record and back.

    # comment
    FROM llama3.2                      a model, or the path of a file
    PARAMETER temperature 0.7          may be repeated
    SYSTEM "one line, or several"
    TEMPLATE \"\"\"anything, with "quotes" too\"\"\"
    MESSAGE user Why is the sky blue?

Commands in any case: FROM ADAPTER DRAFT LICENSE MESSAGE PARAMETER PARSER RENDERER REQUIRES SYSTEM TEMPLATE.
A value runs to the end of its line; if it opens with a quote, to the first line that ends with the same
quote, and inside it nothing is escaped: every character is kept as it is written, zero-width joiners, no-break
spaces, control characters and the ends of lines included (Ollama drops some of them). Blanks around a value, which
are spaces and tabs only, are not part of it.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from ollama_zmq.errors import RequestError
from ollama_zmq.formats.options import typed_parameters
from ollama_zmq.printable import printable_line

ROLES = ("system", "user", "assistant")
COMMANDS = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
)

BLANKS = " \t"
_NOTHING = re.compile(r"(?:[ \t\r\n]++|#[^\r\n]*+)*+")
_COMMAND = re.compile(r"([^ \t\r\n]*)([ \t]?)")
_WORD = re.compile(r"[ \t]*([A-Za-z0-9_]*)([ \t]?)")
_LINE = re.compile(r"([^\r\n]*)(\r\n|\r|\n|\Z)")
_SEMVER = re.compile(r"v?(0|[1-9]\d*)(\.(0|[1-9]\d*)(\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?)?)?")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One ``MESSAGE``: an example of the conversation that comes before the user's."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says.

    Attributes:
        sources: every ``FROM`` value; the model's name or path and, rarely, a projector's path.
        parameters: names and texts of the ``PARAMETER`` lines, in order.
    """

    sources: tuple[str, ...]
    parameters: tuple[tuple[str, str], ...] = ()
    template: str | None = None
    system: str | None = None
    adapters: tuple[str, ...] = ()
    drafts: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    messages: tuple[ChatMessage, ...] = ()
    requires: str | None = None
    renderer: str | None = None
    parser: str | None = None

    @property
    def from_(self) -> str:
        """The last ``FROM``, which is the one that counts."""
        return self.sources[-1]

    def typed_parameters(self) -> dict[str, object]:
        """The parameters as an option record takes them. Raises RequestError for an unknown one or a wrong value."""
        return typed_parameters(self.parameters)


def decode_modelfile(raw: bytes) -> str:
    """The text of a Modelfile: UTF-8, or UTF-16 if its byte order mark says so."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", "replace")
    return raw.decode("utf-8-sig", "replace")


def parse_modelfile(text: str) -> Modelfile:
    """The record of a Modelfile's text.

    Raises:
        RequestError: an unknown command or role, a quote without end, a version that is none, or no ``FROM``.
    """
    found: dict[str, list[str]] = {name: [] for name in COMMANDS}
    parameters: list[tuple[str, str]] = []
    messages: list[ChatMessage] = []
    scanner = _Scanner(text)
    while command := scanner.command():
        word = scanner.word(command) if command in ("parameter", "message") else ""
        value = scanner.value()
        if command == "parameter":
            parameters.append((word, value))
        elif command == "message":
            messages.append(ChatMessage(word, value))
        else:
            found[command].append(value)
    if not any(found["from"]):
        raise RequestError("no FROM line")

    def last(name: str) -> str | None:
        return found[name][-1] if found[name] else None

    return Modelfile(
        sources=tuple(filter(None, found["from"])),
        parameters=tuple(parameters),
        template=last("template"),
        system=last("system"),
        adapters=tuple(found["adapter"]),
        drafts=tuple(found["draft"]),
        licenses=tuple(found["license"]),
        messages=tuple(messages),
        requires=checked_version(last("requires")),
        renderer=last("renderer"),
        parser=last("parser"),
    )


def checked_version(text: str | None) -> str | None:
    """A ``REQUIRES`` without a "v" in front. Raises RequestError if it is no version."""
    if text is not None and not _SEMVER.fullmatch(text):
        raise RequestError("requires must be a valid semver (e.g. 0.14.0)", requires=text)
    return text.removeprefix("v") if text else text


class _Scanner:
    """Walks through the text, command by command."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def error(self, message: str) -> RequestError:
        line = len(re.findall(r"\r\n|\r|\n", self.text[: self.position])) + 1
        return RequestError(f"(line {line}): {message}", line=line)

    def command(self) -> str:
        """The next command in lower case; empty at the end of the text."""
        self.position = _match(_NOTHING, self.text, self.position).end()
        if self.position == len(self.text):
            return ""
        match = _match(_COMMAND, self.text, self.position)
        name = match[1].lower()
        if name not in COMMANDS:
            names = ", ".join(f'"{name}"' for name in COMMANDS[:-1])
            what = f'command must be one of {names}, or "{COMMANDS[-1]}"'
            raise self.error(f"{what}, not {printable_line(match[1], 40)!r}" if match[1] else what)
        if not match[2]:
            raise self.error(f"unexpected EOF: {name.upper()} needs a value")
        self.position = match.end()
        return name

    def word(self, command: str) -> str:
        """The name after PARAMETER or the role after MESSAGE."""
        match = _match(_WORD, self.text, self.position)
        if command == "message" and match[1] not in ROLES:
            raise self.error('message role must be one of "system", "user", or "assistant"')
        if not match[1] or not match[2]:
            raise self.error(f"unexpected EOF: {command.upper()} {match[1]} needs a value")
        self.position = match.end()
        return match[1]

    def value(self) -> str:
        """The value that begins here, without its quotes."""
        value, end = _read_value(self.text, self.position)
        if value is None:
            raise self.error("unexpected EOF: the quote that opens here is not closed")
        self.position = end
        return value


def _match(pattern: re.Pattern[str], text: str, position: int) -> re.Match[str]:
    match = pattern.match(text, position)
    assert match is not None  # these patterns match the empty string
    return match


def _read_value(text: str, position: int) -> tuple[str | None, int]:
    """The value at *position* and where it ends; None if its quote is never closed."""
    line = _match(_LINE, text, position)
    first = line[1].strip(BLANKS)
    quote = next((mark for mark in ('"""', '"') if first.startswith(mark)), "")
    if first.endswith(quote) and len(first) >= 2 * len(quote):
        return first[len(quote) : len(first) - len(quote)], line.end()
    pieces = [line[0].lstrip(BLANKS)[len(quote) :]]
    while line[2]:
        line = _match(_LINE, text, line.end())
        last = line[1].rstrip(BLANKS)
        if last.endswith(quote):
            return "".join(pieces) + last.removesuffix(quote), line.end()
        pieces.append(line[0])
    return None, line.end()


def format_modelfile(modelfile: Modelfile, short_name: str | None = None) -> str:
    """The text that parses to *modelfile*, headed as ``ollama show --modelfile`` does if *short_name* is given."""
    lines = []
    if short_name is not None:
        lines += [
            '# Modelfile generated by "ollama show"',
            "# To build a new Modelfile based on this, replace FROM with:",
        ]
        lines += [f"# FROM {short_name}", ""]
    lines += [f"FROM {quote(source)}" for source in modelfile.sources]
    lines += [f"TEMPLATE {quote(modelfile.template)}"] if modelfile.template is not None else []
    lines += [f"SYSTEM {quote(modelfile.system)}"] if modelfile.system is not None else []
    lines += [f"ADAPTER {quote(adapter)}" for adapter in modelfile.adapters]
    lines += [f"DRAFT {quote(draft)}" for draft in modelfile.drafts]
    lines += [f"RENDERER {quote(modelfile.renderer)}"] if modelfile.renderer is not None else []
    lines += [f"PARSER {quote(modelfile.parser)}"] if modelfile.parser is not None else []
    lines += [f"PARAMETER {name} {quote(text)}" for name, text in modelfile.parameters]
    lines += [f"REQUIRES {quote(modelfile.requires)}"] if modelfile.requires is not None else []
    lines += [f"MESSAGE {message.role} {quote(message.content)}" for message in modelfile.messages]
    lines += [f"LICENSE {quote(text)}" for text in modelfile.licenses]
    return "\n".join(lines) + "\n"


def quote(text: str) -> str:
    """*text* as a value: bare if that reads back the same, else quoted, else in triple quotes.

    No quoting can hold a line that ends in triple quotes; such a text is cut there when it is read back.
    """
    tripled = f'"""{text}"""'
    for form in (text, f'"{text}"'):
        if _read_value(form, 0) == (text, len(form)):
            return form
    return tripled
