"""What a model is shown: which messages, and what is left out when they do not fit. Ollama's rules; pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ollama_zmq.text.templates import ChatTemplate, Message, Think

CHARACTERS_PER_TOKEN = 8  # more than in any language; where tokens are longer still, more is encoded
CUT_TOKENS = 64


def conversation(messages: Sequence[Message], *, system: str = "", examples: Sequence[Message] = ()) -> list[Message]:
    """The request's *messages* after a Modelfile's MESSAGEs (*examples*) and its SYSTEM.

    SYSTEM is left out when the request begins with a system message of its own.
    """
    shown = [*examples, *messages]
    begins_with_system = bool(messages) and messages[0].get("role") == "system"
    return [{"role": "system", "content": system}, *shown] if system and not begins_with_system else shown


def render_generate(
    template: ChatTemplate,
    *,
    prompt: str,
    system: str = "",
    suffix: str = "",
    examples: Sequence[Message] = (),
    think: Think = None,
) -> str:
    """The prompt of an ``/api/generate`` request that is not raw.

    Raises:
        RequestError: there is a *suffix* and the template has no place for one; or see ``ChatTemplate.render``.
    """
    if suffix:
        return template.render_insert(prompt, suffix, think=think)
    user = {"role": "user", "content": prompt}
    return template.render(conversation([user], system=system, examples=examples), think=think)


def literal(value: Any, as_text: Callable[[str], str]) -> Any:
    """A message or tool of a request with ``as_text`` applied to all its texts, but for the role."""
    match value:
        case str():
            return as_text(value)
        case Mapping():
            return {key: item if key == "role" else literal(item, as_text) for key, item in value.items()}
        case list() | tuple():
            return [literal(item, as_text) for item in value]
    return value


def encode_ends(encode: Callable[[str], list[int]], text: str, n: int) -> tuple[list[int], bool]:
    """Token ids of *text*, of which only the first and the last *n* matter, and whether they are all there are.

    Of a far longer text the middle is left out, and there are still more than 2 *n*. A prompt of a megabyte costs a
    second and 300 MB to encode whole, and all but ``num_ctx`` tokens would be thrown away. At the two cuts some words
    are cut too; their tokens are left out as well. Where tokens are long, as for blanks, of which a vocabulary has
    runs of a hundred, the two ends grow until they hold enough: the cost depends on *n*, not on the text.
    """
    width = CHARACTERS_PER_TOKEN * (n + CUT_TOKENS)
    while len(text) > 4 * width:
        tail = encode(text[-width:])[CUT_TOKENS:]
        if len(tail) > n and len(head := encode(text[:width])[:-CUT_TOKENS]) > n:
            return head + tail, False
        width *= 2
    return encode(text), True


def newest_that_fit(
    messages: Sequence[Message], count_tokens: Callable[[Sequence[Message]], int], context: int
) -> list[Message]:
    """*messages* without the oldest ones that make them longer than *context* tokens.

    System messages and the last message always stay. *count_tokens* renders and counts; it is called about
    log2(len(messages)) times, since fewer messages never need more tokens.
    """

    def without(n_dropped: int) -> list[Message]:
        kept = [message for message in messages[:n_dropped] if message.get("role") == "system"]
        return [*kept, *messages[n_dropped:]]

    fewest, most = 0, max(0, len(messages) - 1)
    while fewest < most:
        middle = (fewest + most) // 2
        if count_tokens(without(middle)) <= context:
            most = middle
        else:
            fewest = middle + 1
    return without(fewest)
