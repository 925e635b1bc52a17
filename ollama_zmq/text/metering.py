"""What a chat template may spend, and what it pays for.

Every render has a budget of work, and whatever can multiply pays for the size of its result *before* it is made:

    a call                                                              CALL_WORK
    a turn of a loop, a node of a list that is built or printed         NODE_WORK
    an item of lists that are joined                                    LIST_WORK
    text that is joined, repeated, padded, replaced or printed          1 per character

With MAX_WORK = 2^28 the worst template found ends after three seconds and a quarter of a gigabyte; two thousand
messages of 500 words need a tenth of it.
"""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext

MAX_WORK = 1 << 28
CALL_WORK = 1024
NODE_WORK = 256
LIST_WORK = 32
MAX_INTEGER_BITS = 4096

PADDING = ("center", "ljust", "rjust", "zfill")
_WIDE_FIELD = re.compile(r"\d{5}|\{[^{}]*\{|%[^a-zA-Z%]*\*")


_work_left: ContextVar[list[int]] = ContextVar("work_left")


class TemplateTooCostly(SecurityError):
    """The budget of a render is used up."""


@contextmanager
def budget(work: int = MAX_WORK) -> Iterator[None]:
    """Give the render inside the block *work* to spend."""
    token = _work_left.set([work])
    try:
        yield
    finally:
        _work_left.reset(token)


def spend(work: int) -> None:
    """Take *work* from the current render.

    Raises:
        TemplateTooCostly: that much is not left.
    """
    left = _work_left.get()
    left[0] -= work
    if left[0] < 0:
        raise TemplateTooCostly("the chat template needs more loops or text than is allowed")


def weigh(value: object) -> None:
    """Pay for every node and character of *value*, shared parts as often as they occur."""
    rest = [value]
    while rest:
        part = rest.pop()
        if isinstance(part, str):
            spend(len(part) + 1)
            continue
        spend(NODE_WORK)
        if isinstance(part, Mapping):
            rest += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            rest += part


def pay_for_method(name: str, text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Pay for the result of a string method that can multiply."""
    weigh([text, *args, *kwargs.values()])
    if name in PADDING and args and isinstance(args[0], int):
        spend(max(0, args[0]))
    elif name == "replace" and len(args) > 1:
        spend((text.count(str(args[0])) + 1) * len(str(args[1])))
    elif name == "join" and args:
        items = args[0] if isinstance(args[0], list | tuple | dict | str) else ()
        spend(len(text) * len(items))
    elif name == "format":
        check_format(text)


def check_format(text: str) -> None:
    """Refuse a format whose fields are wide, or whose widths are arguments."""
    if _WIDE_FIELD.search(text):
        raise SecurityError("a chat template may not pad to more than 9999 characters")


def settled(value: Any) -> Any:
    """*value*, or the list of what it would yield: only what is there can be weighed."""
    lazy = isinstance(value, Iterator | KeysView | ValuesView | ItemsView) and not isinstance(value, LoopContext)
    return list(paid(value)) if lazy else value


def pay_for_filter(name: str, value: Any, options: tuple[Any, ...], *, deep: bool) -> None:
    """Pay for a filter on *value*; a *deep* one reads or prints all of it."""
    size = len(value) if isinstance(value, list | tuple | dict | str | range) else 1
    if not deep:
        spend(NODE_WORK + (size if name not in ("length", "count", "d", "default") else 0))
        return
    weigh([value, *options])
    texts = [option for option in options if isinstance(option, str)]
    widths = [option for option in options if isinstance(option, int)]
    if name in ("center", "indent", "truncate"):
        spend(max([0, *widths]) * (str(value).count("\n") + 1))
    elif name == "replace" and len(texts) > 1:
        spend((str(value).count(texts[0]) + 1) * len(texts[1]))
    elif name == "join":
        spend(sum(map(len, texts)) * size)
    elif name == "format":
        check_format(str(value))


def paid(iterable: Iterable[Any]) -> Iterator[Any]:
    """*iterable*, every turn paid for."""
    for item in iterable:
        spend(NODE_WORK)
        yield item


def check_integers(operator: str, left: int, right: int) -> None:
    """Refuse a product or power of more than MAX_INTEGER_BITS bits."""
    bits = left.bit_length() * (max(0, right) if operator == "**" else 1) + right.bit_length()
    if operator != "+" and bits > MAX_INTEGER_BITS:
        raise TemplateTooCostly(f"a chat template may not use integers of more than {MAX_INTEGER_BITS} bits")
