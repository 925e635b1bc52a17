"""Messages to the prompt a model was trained on: what every chat template promises, and the plain words of base models.

When the last message is the assistant's, a template leaves its turn open, so that the model goes on with its words.

What ``render`` returns is to be encoded with ``add_special=True, parse_special=True``: where the tokenizer puts BOS
in front, a BOS that the template wrote itself is taken away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ollama_zmq.errors import RequestError

Message = Mapping[str, Any]
Think = bool | str | None

MAX_TEMPLATE_LENGTH = 131_072  # the largest known has 20,000 characters
MAX_ACTIONS = 4_096  # parsing takes 0.1 ms each


class ChatTemplate(ABC):
    """Renders messages (dicts as in Ollama's API: role, content, thinking, tool_calls, ...) as one prompt."""

    #: the template's text; empty when the model has none
    source: str = ""
    #: why the text is no template; empty when it is one
    defect: str = ""
    #: whether the template knows what to do with tools, with thinking, with a suffix
    takes_tools = False
    takes_thinking = False
    takes_suffix = False

    @abstractmethod
    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = True,
        think: Think = None,
    ) -> str:
        """The prompt for *messages*. *think* is a switch or a level; None leaves it to the template.

        Raises:
            RequestError: the template refuses these messages, or needs more work than is allowed.
        """

    def render_insert(self, prompt: str, suffix: str, *, think: Think = None) -> str:
        """The prompt that asks for what stands between *prompt* and *suffix*.

        Raises:
            RequestError: the template has no place for a suffix.
        """
        raise RequestError("the model's template has no place for a suffix: it does not support insert")


def check_size(source: str) -> None:
    """Refuse a template that would take seconds to compile.

    Raises:
        RequestError: more characters or actions than any model's template has.
    """
    actions = source.count("{{") + source.count("{%")
    for count, limit, what in ((len(source), MAX_TEMPLATE_LENGTH, "characters"), (actions, MAX_ACTIONS, "actions")):
        if count > limit:
            raise RequestError(f"the template has {count} {what}, more than {limit}")


class BrokenTemplate(ChatTemplate):
    """A text that is no template. Only rendering fails, so that its model can be shown, and given raw prompts."""

    def __init__(self, source: str, defect: str) -> None:
        self.source = source
        self.defect = defect

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = True,
        think: Think = None,
    ) -> str:
        """See :class:`ChatTemplate`; always refused."""
        raise RequestError(
            f"the model's chat template does not parse: {self.defect}; create the model with another TEMPLATE, "
            "or use raw prompts"
        )


class PlainTemplate(ChatTemplate):
    """The words of user and assistant, one after the other: for models that were never taught to chat."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = True,
        think: Think = None,
    ) -> str:
        """See :class:`ChatTemplate`; system messages are left out, as by Ollama's ``{{ .Prompt }}``."""
        return "".join(
            str(message.get("content") or "") for message in messages if message.get("role") in ("user", "assistant")
        )
