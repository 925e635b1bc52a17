"""What a chat template may spend, and what it pays for.

Every render, all of its turns and attempts together, has a budget of work and one of memory. Both are paid *before*
the thing is done, and both grow with the text that the request brought, so that a conversation of any length renders:

    work    268 million + 16 per character of the request; one is about ten nanoseconds
            CALL_WORK a call, NODE_WORK a turn of a loop or a node that is built or printed, LIST_WORK an item that is
            joined, 1 per character that is read or changed, 1 per COPIED characters that are copied or compared
    memory  96 MB + 16 per byte of the request: the sum of all that was ever made, so never less than what is held

What none of these prices sees (a template of 4,000 statements without a loop) still takes time, so ``spend`` also looks
at the processor time of its thread now and then: MAX_CPU_S is the last resort.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext

MAX_WORK = 1 << 28
MAX_MEMORY = 96 << 20
MAX_CPU_S = 3.0
PER_CHARACTER = 16
CALL_WORK = 1024
NODE_WORK = 256
LIST_WORK = 32
PART_WORK = 16
COPIED = 8
MAX_INTEGER_BITS = 4096
MAX_DIGITS = 300

OBJECT = 80  # bytes of a short string or a small list, with the pointer to it
REPR = 12  # bytes at most for a character that repr or JSON escapes, \U000e0001 or two \u....
LOOKING = frozenset(("count", "endswith", "find", "index", "rfind", "rindex", "startswith"))
BACKWARDS = frozenset(("rfind", "rindex", "rpartition", "rsplit"))  # CPython's search takes text times needle
SPLITTING = frozenset(("split", "rsplit", "splitlines"))
STRIPPING = frozenset(("strip", "lstrip", "rstrip", "trim"))
READING = frozenset(("capitalize", "casefold", "lower", "swapcase", "title", "upper"))
PADDING = ("center", "ljust", "rjust", "zfill")
# filters that take a text apart: bytes and work for each of its characters
APART = {"title": (160, 16), "wordcount": (80, 8), "urlencode": (48, 8), "unique": (16, 2), "sort": (16, 2)}
_WIDE_FIELD = re.compile(r"\d{5}|\{[^{}]*\{|%[^a-zA-Z%]*\*")
_WIDTH = re.compile(r"\d+")
_WORD = re.compile(r"\S+")


class Meter:
    """What is left to one render."""

    __slots__ = ("cpu_end", "memory", "output", "ticks", "work")

    def __init__(self, work: int, memory: int, output: int, cpu_s: float) -> None:
        self.work, self.memory, self.output, self.ticks = work, memory, output, 0
        self.cpu_end = time.thread_time() + cpu_s


_meter: ContextVar[Meter] = ContextVar("meter")


class TemplateTooCostly(SecurityError):
    """The budget of a render is used up."""


@contextmanager
def budget(work: int = MAX_WORK, memory: int = MAX_MEMORY, *, given: object = None) -> Iterator[Meter]:
    """Give the render inside the block *work* and *memory* to spend, and more for the text in *given*."""
    n_characters, n_bytes = size_of(given)
    meter = Meter(
        work + PER_CHARACTER * n_characters,
        memory + PER_CHARACTER * n_bytes,
        (memory >> 4) + 4 * n_characters,
        MAX_CPU_S + n_characters * 2e-7,
    )
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


def size_of(given: object) -> tuple[int, int]:
    """Characters and bytes of all texts in JSON values."""
    n_characters = n_bytes = 0
    rest = [given]
    while rest:
        part = rest.pop()
        if isinstance(part, str):
            n_characters += len(part)
            n_bytes += len(part) * width(part)
        elif isinstance(part, Mapping):
            rest += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple):
            rest += part
    return n_characters, n_bytes


def current() -> Meter:
    """What is left to the render that runs now."""
    return _meter.get()


def spend(work: int) -> None:
    """Take *work* from the current render.

    Raises:
        TemplateTooCostly: that much is not left.
    """
    meter = _meter.get()
    meter.work -= work
    if meter.work < 0:
        raise TemplateTooCostly("the chat template needs more loops or text than is allowed")
    meter.ticks += 1 + (work >> 12)
    if meter.ticks >= 64:
        meter.ticks = 0
        if time.thread_time() > meter.cpu_end:
            raise TemplateTooCostly("the chat template takes longer than is allowed")


def hold(n_bytes: int) -> None:
    """Take *n_bytes* of memory from the current render.

    Raises:
        TemplateTooCostly: that much is not left.
    """
    meter = _meter.get()
    meter.memory -= n_bytes
    if meter.memory < 0:
        raise TemplateTooCostly("the chat template needs more memory than is allowed")


def width(text: str) -> int:
    """Bytes of each character of *text*; of a short one perhaps more than it has."""
    if text.isascii():
        return 1
    n_bytes = sys.getsizeof(text)
    return 4 if n_bytes > 4 * len(text) else 2 if n_bytes > 2 * len(text) else 1


def copied(text: str, n_characters: int | None = None) -> None:
    """Pay for a copy of *text*, or of so many characters of it."""
    n = len(text) if n_characters is None else n_characters
    spend(PART_WORK + n // COPIED)
    hold(OBJECT + n * width(text))


def weigh(value: object) -> tuple[int, int]:
    """Pay for every node and character of *value*, shared parts as often as they occur.

    Returns: the number of characters, and the bytes of the widest one.
    """
    rest, n_characters, widest = [value], 0, 1
    while rest:
        part = rest.pop()
        if isinstance(part, str):
            spend(len(part) + 1)
            n_characters += len(part)
            widest = max(widest, width(part))
            continue
        spend(NODE_WORK)
        if isinstance(part, Mapping):
            rest += [*part.keys(), *part.values()]
        elif isinstance(part, range):
            spend(NODE_WORK * len(part))
            hold(OBJECT * len(part))
            n_characters += 8 * len(part)
        elif isinstance(part, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
            rest += part
    return n_characters, widest


def pay_for_method(name: str, text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Pay for a string method: what it reads, and its result."""
    options = [*args, *kwargs.values()]
    n_options, option_width = weigh(options)
    n, wide = len(text), max(width(text), option_width)
    spend(n if name in READING or name.startswith("is") else n // COPIED)
    if name in BACKWARDS or name in STRIPPING:
        spend(n * n_options // COPIED)
    if name in LOOKING or name.startswith("is"):
        return
    hold(OBJECT * 4 + n * (wide if text.isascii() or name not in READING else 12))
    numbers = [option for option in options if isinstance(option, int)]
    if name in PADDING:
        spend(max([0, *numbers]))
        hold(max([0, *numbers]) * wide)
    elif name == "replace" and len(args) > 1:
        pay_for_replacing(text, str(args[0]), str(args[1]), wide)
    elif name == "join" and args:
        items = args[0] if isinstance(args[0], list | tuple | dict | str) else ()
        spend(n * len(items))
        hold((n * len(items) + n_options) * wide + OBJECT * len(items))
    elif name in SPLITTING:
        separator = next((option for option in options if isinstance(option, str)), "")
        n_pieces = text.count(separator) if separator else n if name == "splitlines" else _words(text)
        spend(LIST_WORK * n_pieces)
        hold(OBJECT * n_pieces)
    elif name == "format":
        pay_for_format(text, n_options, max(wide, 4))


def _words(text: str) -> int:
    spend(len(text))
    return sum(1 for _ in _WORD.finditer(text))


def pay_for_replacing(text: str, old: str, new: str, wide: int) -> None:
    """Pay for the copies of *new* in the place of *old*, each character *wide* bytes."""
    n_new = (text.count(old) + 1) * len(new)
    spend(n_new)
    hold((n_new + len(text)) * wide)


def pay_for_format(text: str, n_characters: int, wide: int) -> None:
    """Pay for filling in the fields of a format, each with all of the arguments' *n_characters*.

    Raises:
        SecurityError: fields are wide, or their widths are arguments.
    """
    check_format(text)
    n_fields = text.count("%") + text.count("{")
    n_padding = sum(int(digits[0]) for digits in _WIDTH.finditer(text)) if n_fields else 0
    spend(n_fields * (n_characters + NODE_WORK) + n_padding)
    hold(n_fields * (n_characters * REPR + OBJECT) + (n_padding + len(text)) * wide)


def check_format(text: str) -> None:
    """Refuse a format whose fields are wide, or whose widths are arguments."""
    if _WIDE_FIELD.search(text):
        raise SecurityError("a chat template may not pad to more than 9999 characters")


def settled(value: Any) -> Any:
    """*value*, or the list of what it would yield: only what is there can be weighed."""
    lazy = isinstance(value, Iterator | KeysView | ValuesView | ItemsView | range) and not isinstance(
        value, LoopContext
    )
    return list(paid(value)) if lazy else value


def pay_for_filter(name: str, value: Any, options: tuple[Any, ...], *, deep: bool) -> None:
    """Pay for a filter on *value*; a *deep* one reads or prints all of it."""
    size = len(value) if isinstance(value, list | tuple | dict | str | range) else 1
    texts = [option for option in options if isinstance(option, str)]
    numbers = [option for option in options if isinstance(option, int | float)]
    n_texts = sum(map(len, texts))
    if not deep:
        at_once = name in ("attr", "length", "count", "d", "default", "first", "last")
        spend(NODE_WORK + n_texts + (0 if at_once else size * (LIST_WORK + n_texts)))
        hold(OBJECT + (0 if at_once else OBJECT * size))
        return
    n, wide = weigh(value)
    wide = max(wide, weigh(options)[1])
    n_bytes, work = APART.get(name, (wide * 2 if isinstance(value, str) else REPR, 1))
    spend(n * (work - 1))
    hold(OBJECT + n * n_bytes + (0 if isinstance(value, str) else size * 2 * OBJECT))
    if name in ("e", "escape", "forceescape"):
        hold(n * 5 * wide)
    elif name in READING and isinstance(value, str) and not value.isascii():
        hold(n * 12)
    elif name in ("center", "indent", "truncate"):
        n_padding = int(max([0, *numbers])) * ((value if isinstance(value, str) else "").count("\n") + 1)
        n_padding += n_texts * (value.count("\n") + 1) if isinstance(value, str) else 0
        spend(n_padding)
        hold(n_padding * wide)
    elif name == "replace" and len(texts) > 1 and isinstance(value, str):
        pay_for_replacing(value, texts[0], texts[1], wide)
    elif name == "join":
        spend(n_texts * size)
        hold((n_texts * size) * wide)
    elif name == "format":
        pay_for_format(str(value), weigh(options)[0], 4)
    elif name == "trim":
        spend(size * n_texts // COPIED)
    elif name == "striptags":
        spend((str(value).count("<") + 1) * n // COPIED)
    elif name in ("sort", "dictsort", "groupby", "unique", "min", "max"):
        spend((n + LIST_WORK * size) * size.bit_length() + size * n_texts * LIST_WORK)
    elif name == "round" and any(abs(number) > MAX_DIGITS for number in numbers):
        raise SecurityError(f"a chat template may not round to more than {MAX_DIGITS} digits")


def pay_for_comparison(operator: str, left: Any, right: Any) -> None:
    """Pay for ``left operator right``: texts and lists of different lengths are not equal, and that costs nothing."""
    spend(PART_WORK)
    if operator in ("in", "notin"):
        _pay_for_membership(left, right)
    elif isinstance(left, str) and isinstance(right, str):
        if len(left) == len(right) or operator not in ("eq", "ne"):
            spend(min(len(left), len(right)) // COPIED)
    elif _has_items(left) and _has_items(right) and (len(left) == len(right) or operator not in ("eq", "ne")):
        weigh(left)
        weigh(right)


def _has_items(value: object) -> bool:
    return isinstance(value, list | tuple | Mapping | set | frozenset | KeysView | ValuesView | ItemsView)


def _pay_for_membership(item: Any, container: Any) -> None:
    if isinstance(container, str):
        spend(len(container) // COPIED + (len(item) // COPIED if isinstance(item, str) else 0))
    elif isinstance(container, Mapping | KeysView):
        weigh_key(item)
    elif _has_items(container):
        spend(LIST_WORK * len(container))
        if isinstance(item, str):
            spend(
                sum(len(other) for other in container if isinstance(other, str) and len(other) == len(item)) // COPIED
            )
        elif _has_items(item):
            weigh(item)
            weigh(container)


def weigh_key(key: object) -> None:
    """Pay for the hash of *key*: a tuple's is computed anew each time."""
    if isinstance(key, tuple):
        weigh(key)


def paid(iterable: Iterable[Any], work: int = NODE_WORK) -> Iterator[Any]:
    """*iterable*, *work* paid for every turn."""
    for item in iterable:
        spend(work)
        hold(OBJECT)
        yield item


def check_integers(operator: str, left: int, right: int) -> None:
    """Refuse a product, quotient or power of more than MAX_INTEGER_BITS bits."""
    bits = left.bit_length() * (max(0, right) if operator == "**" else 1) + right.bit_length()
    if operator not in ("+", "-") and bits > MAX_INTEGER_BITS:
        raise TemplateTooCostly(f"a chat template may not use integers of more than {MAX_INTEGER_BITS} bits")
