"""Go templates, as in a Modelfile's TEMPLATE and in the models of Ollama's library. The only importer of ``gotpl``.

A template that mentions ``.Messages`` is given all of them at once. An older one is a single turn of ``.System``,
``.Prompt`` and ``.Response``: it is run once per turn, and in the last one everything behind ``.Response`` is cut off,
for there the model goes on.

Source of the rules: Ollama's ``template/template.go``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, cast

from gotpl import ExecutionBudget, SandboxPolicy, Template
from gotpl.parse.parser import parse_template

from ollama_zmq.errors import RequestError
from ollama_zmq.text.go_functions import PRINTER, GoMeter, functions
from ollama_zmq.text.go_values import JsonList, go_message, go_tool
from ollama_zmq.text.metering import COPIED, budget, hold, spend, width
from ollama_zmq.text.templates import ChatTemplate, Message, Think, check_size

_ACTION = re.compile(r"""\{\{(?:"(?:\\.|[^"\\])*+"|`[^`]*+`|'(?:\\.|[^'\\])*+'|(?!\}\})[^"`'])*+""", re.DOTALL)
_LONG_NUMBER = re.compile(r"[0-9.+-][\w.+-]{100,}")


class GoTemplate(ChatTemplate):
    """A Go template.

    Raises:
        RequestError: it is not one.
    """

    def __init__(self, source: str, *, clock: Callable[[], datetime] = datetime.now) -> None:
        check_size(source)
        _check_numbers(source)
        self.source = source
        self._functions = functions(clock)
        names = set(_fields(self._parsed(source)))
        if not names & {"Messages", "Response"}:
            source += "{{ .Response }}"
        self.takes_tools = "Tools" in names
        self.takes_suffix = "Suffix" in names
        self.takes_thinking = bool(names & {"Think", "Thinking"})
        self._takes_messages = "Messages" in names
        self._whole = self._compiled(source)
        self._last_turn = self._whole if self._takes_messages else self._compiled(self._cut(source))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = True,
        think: Think = None,
    ) -> str:
        """See :class:`ChatTemplate`. Go templates decide by the last message whether the assistant is to speak."""
        with budget(given=[*messages, *(tools or ())]):  # for all turns together
            return self._render_all(messages, tools, think)

    def _render_all(self, messages: Sequence[Message], tools: Sequence[Message] | None, think: Think) -> str:
        system, merged = collate(messages)
        if not self._takes_messages:
            return self._render_turns(merged, think)
        values = {
            "System": system,
            "Messages": [go_message(message) for message in merged],
            "Tools": JsonList(map(go_tool, tools or ())),
            "Prompt": "",
            "Suffix": "",
            "Response": "",
        }
        return self._run(self._whole, values | _thinking(think))

    def render_insert(self, prompt: str, suffix: str, *, think: Think = None) -> str:
        """See :class:`ChatTemplate`."""
        if not self.takes_suffix:
            return super().render_insert(prompt, suffix, think=think)
        values = {"System": "", "Messages": [], "Tools": JsonList(), "Response": "", "Prompt": prompt, "Suffix": suffix}
        with budget(given=[prompt, suffix]):
            return self._run(self._whole, values | _thinking(think))

    def _render_turns(self, messages: Sequence[Message], think: Think) -> str:
        turns = list(_turns(messages))
        common = {"Suffix": "", "Messages": [], "Tools": JsonList()} | _thinking(think)
        done = [self._run(self._whole, common | turn) for turn in turns[:-1]]
        return "".join(done) + self._run(self._last_turn, common | turns[-1])

    def _parsed(self, source: str) -> Any:
        try:
            return parse_template(
                source, name="template", left_delimiter="{{", right_delimiter="}}", functions=self._functions
            )
        except Exception as error:  # syntax, unknown functions, and whatever a young parser throws at odd text
            raise RequestError(_failed(error)) from error

    def _compiled(self, source: str) -> Template:
        try:
            return Template(
                self._printing(source),
                functions=self._functions,
                missing_key="zero",
                format_mode="python",
                sandbox=SandboxPolicy(allow_functions=self._functions),
                budget=cast(ExecutionBudget, GoMeter()),
            )
        except Exception as error:
            raise RequestError(_failed(error)) from error

    def _printing(self, source: str) -> str:
        """*source* with every pipeline that is printed ending in a function that prints as Go does.

        gotpl prints what is missing as None, and maps and lists not as Ollama's own types print themselves.
        """
        printed = (
            node.end
            for node in _nodes(self._parsed(source))
            if type(node).__name__ == "ActionNode" and not node.pipeline.declarations
        )
        for end in sorted(printed, reverse=True):
            inside = source[:end].removesuffix("}}")
            trim = "-" if inside.endswith("-") else ""
            source = f"{inside.removesuffix('-')} | {PRINTER} {trim}}}}}{source[end:]}"
        return source

    def _run(self, template: Template, values: Mapping[str, Any]) -> str:
        try:
            made = template.render(dict(values))
            spend(len(made) // COPIED)
            hold(len(made) * width(made))
        except Exception as error:  # whatever a foreign template can bring about
            raise RequestError(_failed(error)) from error
        return made

    def _cut(self, source: str) -> str:
        """*source* up to the first ``.Response`` that is printed, with the blocks around it closed."""
        parsed = self._parsed(source)
        found = _first_response(parsed.root, 0)
        if found is None:
            return source
        end, depth = found
        later = "".join(source[part.start : part.end] for part in parsed.definitions if part.start >= end)
        for n_open in range(depth + 1):  # an else-if nests in the tree, but has no end of its own
            cut = source[:end] + "{{end}}" * n_open + later
            try:
                self._parsed(cut)
            except RequestError:
                continue
            return cut
        return source


def _check_numbers(source: str) -> None:
    """Refuse numbers of a hundred digits, over which gotpl's lexer takes time that grows with their cube."""
    if any(_LONG_NUMBER.search(action[0]) for action in _ACTION.finditer(source)):
        raise RequestError("template error: a number of more than 100 characters")


def _failed(error: Exception) -> str:
    return f"template error: {' '.join(str(error).split()) or type(error).__name__}"


def collate(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """All system texts as one, and *messages* with neighbours of the same role (but tool) merged."""
    system = "\n\n".join(str(m.get("content") or "") for m in messages if m.get("role") == "system")
    merged: list[Message] = []
    for role, group in groupby(messages, key=lambda message: message.get("role")):
        same = list(group)
        if role == "tool" or len(same) == 1:
            merged += same
        else:
            content = "\n\n".join(str(message["content"]) for message in same if message.get("content"))
            merged.append({**_united(same), "content": content})
    return system, merged


def _united(messages: Sequence[Message]) -> dict[str, Any]:
    """The fields of several messages as one: lists joined, of other fields the last."""
    united: dict[str, Any] = {}
    for message in messages:
        for key, value in message.items():
            united[key] = [*united.get(key, ()), *value] if isinstance(value, list) else value
    return united


def _turns(messages: Sequence[Message]) -> Iterator[dict[str, str]]:
    """The turns an old template is run for; the last one is the one to be answered."""
    turn = {"System": "", "Prompt": "", "Response": ""}
    for message in messages:
        role, content = message.get("role"), str(message.get("content") or "")
        if (role == "system" and (turn["Prompt"] or turn["Response"])) or (role == "user" and turn["Response"]):
            yield turn
            turn = {"System": "", "Prompt": "", "Response": ""}
        key = {"system": "System", "user": "Prompt", "assistant": "Response"}.get(str(role))
        if key:
            turn[key] = content
    yield turn


def _nodes(node: object) -> Iterator[Any]:
    """Every node of a syntax tree."""
    if isinstance(node, tuple):
        for part in node:
            yield from _nodes(part)
    elif dataclasses.is_dataclass(node):
        yield node
        for field in dataclasses.fields(node):
            yield from _nodes(getattr(node, field.name))


def _fields(node: object) -> Iterator[str]:
    """Every field name in a syntax tree."""
    if isinstance(node, tuple):
        for part in node:
            yield from _fields(part)
    elif dataclasses.is_dataclass(node):
        yield from getattr(node, "fields", ())
        for field in dataclasses.fields(node):
            yield from _fields(getattr(node, field.name)) if field.name != "fields" else ()


def _first_response(nodes: Any, depth: int) -> tuple[int, int] | None:
    """Where the first action with ``.Response`` ends, and within how many blocks it stands."""
    for node in nodes.nodes:
        kind = type(node).__name__
        if kind == "ActionNode" and "Response" in _fields(node):
            return node.end, depth
        for body in (getattr(node, "body", None), getattr(node, "else_body", None)):
            if body is not None and (found := _first_response(body, depth + 1)):
                return found
    return None


def _thinking(think: Think) -> dict[str, object]:
    level = think if isinstance(think, str) else ""
    return {"Think": bool(think), "ThinkLevel": level, "IsThinkSet": think is not None}
