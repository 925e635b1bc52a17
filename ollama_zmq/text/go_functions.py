"""The functions of Go templates, and what each of them pays before it works.

gotpl counts what a template writes, its loops and its calls, each against a limit that it reads anew every time: so a
:class:`GoMeter` in the place of the limits is told of every step, and pays for it from the budget of the whole render.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import wraps

from gotpl.runtime import sync_vm
from gotpl.runtime.gofmt import sprintf

from ollama_zmq.text.go_values import argument, go_json, go_text, printed, typescript
from ollama_zmq.text.metering import (
    CALL_WORK,
    COPIED,
    NODE_WORK,
    OBJECT,
    REPR,
    copied,
    current,
    hold,
    pay_for_comparison,
    spend,
    weigh,
    width,
)

MAX_DEPTH = 100
GO_STEP = 4 * NODE_WORK  # a step of gotpl takes some ten microseconds
WIDE_FIELD = re.compile(r"%[^a-zA-Z%]*(?:\d{5}|\*)")
_WIDTH = re.compile(r"\d+")
_VERB = re.compile(r"%[^%a-zA-Z]*[a-zA-Z]")
PRINTER = "_printed"  # the function at the end of every pipeline that is printed
PRINTING = frozenset(("print", "println", "html", "js", "urlquery"))
ESCAPED = {"html": 5, "js": 6, "urlquery": 12}  # characters at most in the place of one


class GoMeter:
    """What gotpl takes for its limits: to read one is to pay for the step that it limits."""

    @property
    def max_output_chars(self) -> int:
        """The characters that may be written at once, read before each piece."""
        spend(GO_STEP)
        return current().output

    @property
    def max_iterations(self) -> None:
        """No limit of its own, read before each turn of a loop."""
        spend(GO_STEP)

    @property
    def max_template_depth(self) -> int:
        """How deep templates may call each other, read before each call."""
        spend(2 * GO_STEP)
        hold(8 * OBJECT)
        return MAX_DEPTH

    @property
    def max_function_calls(self) -> None:
        """No limit of its own, read before each call."""
        spend(CALL_WORK)


def functions(clock: Callable[[], datetime]) -> dict[str, Callable[..., object]]:
    """The functions of Ollama's templates and Go's own, all paid for; *clock* tells the date."""
    own: dict[str, Callable[..., object]] = {
        "printf": _printf,
        "json": _json,
        "currentDate": lambda *_: clock().strftime("%Y-%m-%d"),
        "yesterdayDate": lambda *_: (clock() - timedelta(days=1)).strftime("%Y-%m-%d"),
        "toTypeScriptType": typescript,
        PRINTER: _shown,
    }
    builtin = sync_vm._builtin_functions("go")
    return {**{name: _paid(name, builtin[name]) for name in builtin if name != "call"}, **own}


def _paid(name: str, function: Callable[..., object]) -> Callable[..., object]:
    """Go's own *function*, paying first."""

    @wraps(function)
    def paying(*values: object) -> object:
        _pay(name, values)
        return function(*map(argument, values)) if name in PRINTING else function(*values)

    return paying


def _pay(name: str, values: tuple[object, ...]) -> None:
    if name in ("print", "println"):
        _pay_for_print(values)
    elif name in ESCAPED:
        n_characters = _pay_for_print(values)
        spend(n_characters * 8)
        hold(n_characters * (OBJECT + 8 + 4 * ESCAPED[name]))
    elif name in ("len", "index", "slice") and values and isinstance(values[0], str):
        copied(values[0])  # Go counts bytes, so the text is encoded
        copied(values[0])
    elif name == "slice" and values and isinstance(values[0], list | tuple):
        spend(len(values[0]))
        hold(OBJECT + 8 * len(values[0]))
    elif name in ("eq", "ne", "lt", "le", "gt", "ge"):
        for other in values[1:]:
            if isinstance(values[0], str) and isinstance(other, str):
                pay_for_comparison(name, values[0], other)


def _pay_for_print(values: Sequence[object]) -> int:
    """Pay for the text of *values*; returns about how many characters it has."""
    total = 0
    for value in values:
        if isinstance(value, str):
            copied(value)
            total += len(value)
        else:
            n_characters = weigh(printed(value))[0]
            hold(n_characters * REPR)
            total += n_characters
    return total


def _shown(value: object) -> str:
    """What an action prints whose pipeline gives *value*."""
    _pay_for_print([value])
    return go_text(value)


def _json(value: object) -> str:
    n_characters = weigh(printed(value))[0]
    spend(n_characters)
    hold(OBJECT + n_characters * REPR)
    return go_json(printed(value))


def _printf(pattern: str, *values: object) -> str:
    """Go's ``printf``, for fields and texts of a size a prompt may have."""
    if WIDE_FIELD.search(pattern):
        raise ValueError("printf makes too long a text")
    texts = [value for value in values if isinstance(value, str)]
    wide = max(map(width, [pattern, *texts]))
    n_characters = _pay_for_print(values)
    n_verbs = pattern.count("%")
    longest = n_characters if "[" in pattern else 0  # %[1]s may name the same one again and again
    quoted = any(verb[0][-1] not in "sd" for verb in _VERB.finditer(pattern))
    n_padding = sum(int(digits[0]) for digits in _WIDTH.finditer(pattern))
    n_made = (n_verbs * longest + n_characters) * (REPR if quoted else 1) + n_padding
    spend(n_made // COPIED + len(pattern) + n_verbs * NODE_WORK)
    hold((n_made + len(pattern)) * wide + OBJECT)
    return sprintf(pattern, *map(argument, values), format_mode="go")
