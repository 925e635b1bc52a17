"""Jinja templates as Hugging Face defines them, run in a sandbox within a budget of work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ollama_zmq.errors import ModelFileError, RequestError
from ollama_zmq.text.templates import ChatTemplate, Message, Think, check_size

if TYPE_CHECKING:
    from jinja2 import Template

MAX_REFUSAL = 1000
END_OF_CONTENT = "\ufdd0\ufdd1"  # two of the code points that no text has: the prompt is cut here


class JinjaTemplate(ChatTemplate):
    """A Jinja template.

    Args:
        bos, eos: texts of the special tokens, for templates that write them.
        strips_bos: the tokenizer adds BOS, so the template's own is dropped.
        with_tools: another template to use when there are tools (``tokenizer.chat_template.tool_use``).
        clock: what ``strftime_now`` shows.
    """

    def __init__(
        self,
        source: str,
        *,
        bos: str = "",
        eos: str = "",
        strips_bos: bool = False,
        with_tools: str | None = None,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        every_source = source + (with_tools or "")
        self.takes_tools = "tools" in every_source
        self.takes_thinking = any(name in every_source for name in ("enable_thinking", "reasoning_effort", "<think>"))
        self._bos, self._strips_bos, self._clock = bos, strips_bos, clock
        self._short_ids = "with length 9" in source  # Mistral's refuse tool call ids of any other form
        self._template = _compiled(source)
        self._with_tools = _compiled(with_tools) if with_tools else self._template
        self._constants = {
            "bos_token": bos,
            "eos_token": eos,
            "raise_exception": _raise_exception,
            "strftime_now": lambda pattern: clock().strftime(str(pattern)[:100]),
        }

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = True,
        think: Think = None,
    ) -> str:
        """See :class:`ChatTemplate`. The assistant's last message goes on where the template put its content."""
        from ollama_zmq.text.metering import budget

        with budget(given=[*messages, *(tools or ())]):  # for all attempts together
            return self._render_attempts(messages, tools, add_generation_prompt, think)

    def _render_attempts(
        self, messages: Sequence[Message], tools: Sequence[Message] | None, add_generation_prompt: bool, think: Think
    ) -> str:
        shown = [_hugging_face(message, self._short_ids) for message in messages]
        if add_generation_prompt and shown and _is_unfinished(shown[-1]):
            marked = {**shown[-1], "content": shown[-1]["content"] + END_OF_CONTENT}
            prompt, end, _ = self._render([*shown[:-1], marked], tools, False, think).rpartition(END_OF_CONTENT)
            if end:
                return prompt
        return self._render(shown, tools, add_generation_prompt, think)

    def _render(
        self, shown: list[dict[str, Any]], tools: Sequence[Message] | None, add_generation_prompt: bool, think: Think
    ) -> str:
        template = self._with_tools if tools else self._template
        given = [*tools] if tools else None
        values = {
            **self._constants,
            **_thinking(think),
            "messages": shown,
            "tools": given,
            "functions": json.dumps(given, indent=2) if given else "",
            "datetime": self._clock().strftime("%b %d %Y %H:%M:%S GMT"),
            "add_generation_prompt": add_generation_prompt,
        }
        # Some templates take tools for granted, and some the arguments of a call for text; a TypeError tells.
        variants: tuple[dict[str, object], ...] = (
            {},
            {"tools": given or []},
            {"messages": _with_text_arguments(shown)},
        )
        for variant in variants:
            try:
                prompt = _rendered(template, values | variant)
            except TypeError as error:
                failure = error
            else:
                return prompt.removeprefix(self._bos) if self._strips_bos else prompt
        raise RequestError(_failed(failure)) from failure


def _is_unfinished(message: Mapping[str, Any]) -> bool:
    """Whether *message* is text of the assistant that the model is to go on with."""
    return message["role"] == "assistant" and isinstance(message["content"], str) and "tool_calls" not in message


def _compiled(source: str) -> Template:
    from jinja2 import TemplateSyntaxError

    from ollama_zmq.text.sandbox import Sandbox

    check_size(source)
    try:
        return Sandbox().from_string(source)
    except TemplateSyntaxError as error:
        raise ModelFileError(f"tokenizer.chat_template: line {error.lineno}: {error.message}") from error
    except Exception as error:  # nested too deep, and whatever else a compiler meets
        raise ModelFileError(f"tokenizer.chat_template: cannot be compiled: {' '.join(str(error).split())}") from error


def _rendered(template: Template, values: Mapping[str, object]) -> str:
    """The output of *template*.

    Raises:
        TypeError: it did something with a value of the wrong kind.
        RequestError: anything else it ran into.
    """
    try:
        return template.render(values)
    except (RequestError, TypeError):
        raise
    except Exception as error:  # whatever a foreign template can bring about
        raise RequestError(_failed(error)) from error


def _failed(error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"the model's chat template failed: {reason}"


def _raise_exception(message: object) -> None:
    raise RequestError(f"the model's chat template refuses: {str(message)[:MAX_REFUSAL]}")


def _thinking(think: Think) -> dict[str, object]:
    """The variables by which templates of several families learn whether to think."""
    if think is None:
        return {}
    switches: dict[str, object] = {"enable_thinking": bool(think), "thinking": bool(think)}
    return switches | ({"reasoning_effort": think} if isinstance(think, str) else {})


def _hugging_face(message: Message, short_ids: bool) -> dict[str, Any]:
    """*message* with the names Hugging Face's templates look for; what is empty is left out."""
    id_of = _short_id if short_ids else str
    found: dict[str, Any] = {"role": message.get("role", ""), "content": message.get("content") or ""}
    if message.get("thinking"):
        found["reasoning_content"] = found["thinking"] = message["thinking"]
    if message.get("tool_calls"):
        found["tool_calls"] = [
            {"type": "function", **call, **({"id": id_of(call["id"])} if call.get("id") else {})}
            for call in message["tool_calls"]
        ]
    if message.get("tool_name"):
        found["name"] = found["tool_name"] = message["tool_name"]
    if message.get("tool_call_id"):
        found["tool_call_id"] = id_of(message["tool_call_id"])
    return found


def _with_text_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """*messages* with the arguments of tool calls as JSON text, the way OpenAI's API has them."""
    changed = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"].get("arguments"))}}
            for call in message.get("tool_calls", ())
        ]
        changed.append({**message, "tool_calls": calls} if calls else message)
    return changed


def _short_id(call_id: str) -> str:
    """Nine letters and digits that stand for *call_id*."""
    return call_id if len(call_id) == 9 and call_id.isalnum() else hashlib.sha256(call_id.encode()).hexdigest()[:9]
