"""Which template a model's messages are rendered with.

A model brings its own Jinja template (``tokenizer.chat_template``); a Modelfile may bring a Go template (TEMPLATE),
which wins. A model with neither is a base model: it gets the plain words, as with Ollama's ``{{ .Prompt }}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.text.jinja_templates import JinjaTemplate
from ollama_zmq.text.templates import BrokenTemplate, ChatTemplate, PlainTemplate

if TYPE_CHECKING:
    from ollama_zmq.text.tokenizer import Tokenizer


def chat_template(
    metadata: Mapping[str, object], go_template: str | None = None, *, tokenizer: Tokenizer | None = None
) -> ChatTemplate:
    """The template of a model: *go_template* (a Modelfile's TEMPLATE), else the file's own, else plain words.

    *tokenizer* is the one of the same file; without it BOS and EOS have no text. A text that is no template is a
    :class:`BrokenTemplate`, which says why.
    """
    source = go_template or metadata.get("tokenizer.chat_template")
    if not isinstance(source, str) or not source:
        return PlainTemplate()
    try:
        return _go_template(source) if go_template else _jinja_template(source, metadata, tokenizer)
    except OllamaZmqError as error:
        return BrokenTemplate(source, str(error))


def _go_template(source: str) -> ChatTemplate:
    from ollama_zmq.text.go_templates import GoTemplate

    return GoTemplate(source)


def _jinja_template(source: str, metadata: Mapping[str, object], tokenizer: Tokenizer | None) -> ChatTemplate:
    with_tools = metadata.get("tokenizer.chat_template.tool_use")
    return JinjaTemplate(
        source,
        bos=_token_text(tokenizer, tokenizer.bos_id if tokenizer else None),
        eos=_token_text(tokenizer, tokenizer.eos_id if tokenizer else None),
        strips_bos=tokenizer is not None and tokenizer.add_bos,
        with_tools=with_tools if isinstance(with_tools, str) else None,
    )


def _token_text(tokenizer: Tokenizer | None, token_id: int | None) -> str:
    return "" if tokenizer is None or token_id is None else tokenizer.token_text(token_id)
