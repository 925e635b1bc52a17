"""A Jinja environment for templates that came with a downloaded model: they compute text, and nothing else.

Jinja's immutable sandbox keeps a template from Python's internals and from changing its arguments. It does not keep
one from looping for ever, from ``"x" * 10**10``, or from a list that holds the same list twice, forty deep: metering.py
does, and this environment calls it wherever a template can repeat something or make something larger. Methods and
filters are lists of what is allowed, so that a new release of Jinja cannot add one that multiplies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ollama_zmq.text.metering import (
    CALL_WORK,
    LIST_WORK,
    NODE_WORK,
    check_format,
    check_integers,
    paid,
    pay_for_filter,
    pay_for_method,
    settled,
    spend,
    weigh,
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


METHODS: dict[type[Any], frozenset[str]] = {
    str: _names(
        "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit islower"
        " isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind"
        " rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill"
    ),
    dict: _names("copy get items keys values"),
    list: _names("copy count index"),
    tuple: _names("count index"),
    int: _names(""),
    float: _names("is_integer"),
}
# filters that only look at the value, and those that read or print all of it
CHEAP_FILTERS = _names(
    "attr count d default first items last length list map reject rejectattr reverse select selectattr"
)
DEEP_FILTERS = _names(
    "abs capitalize center dictsort e escape float forceescape format groupby indent int join lower max min replace"
    " round safe sort string striptags title trim truncate unique upper urlencode wordcount"
)


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter *function*, paying first."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # Jinja's own argument comes before the value

    @wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        value, options = settled(args[first]), args[first + 1 :]
        pay_for_filter(name, value, (*options, *kwargs.values()), deep=name not in CHEAP_FILTERS)
        return function(*args[:first], value, *options, **kwargs)

    return filtered


class _Metering(NodeTransformer):
    """Rewrites what can repeat or grow into a filter that pays for it."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filter("__each", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter("__text", nodes.List(node.nodes, lineno=node.lineno))

    def _visit_literal(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _filter("__built", node)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return self._visit_literal(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return self._visit_literal(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self._visit_literal(node) if node.ctx == "load" else node


def _filter(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


def _each(iterable: Iterable[Any]) -> Iterable[Any]:
    """*iterable*, every turn paid for; what has a length keeps it, so that ``loop.last`` costs nothing."""
    if isinstance(iterable, list | tuple | dict | str | range):
        spend(NODE_WORK * len(iterable))
        return iterable
    return paid(iterable)


def _text(parts: list[object]) -> str:
    weigh(parts)
    return "".join(map(str, parts))


def _built(value: object) -> object:
    """A new list or dict; text in it is only referred to, so only nodes are paid for."""
    rest = [value]
    while rest:
        part = rest.pop()
        spend(NODE_WORK)
        if isinstance(part, dict):
            rest += part.values()
        elif isinstance(part, list | tuple):
            rest += part
    return value


def _finalize(value: object) -> object:
    if not isinstance(value, str):
        weigh(value)
    return value


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON as Hugging Face's chat templates expect it: not escaped for HTML, no ASCII armour.

    ``separators`` and ``sort_keys`` are passed on.
    """
    value = settled(value)
    weigh(value)
    allowed = {key: options[key] for key in ("separators", "sort_keys") if key in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, 16) if indent else indent, **allowed)


class QuietNamespace(Namespace):
    """A namespace that prints as nothing but its name, however much it holds."""

    def __repr__(self) -> str:
        return "<Namespace>"


class GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's words for training; for a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja's own way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment chat templates are compiled in. Render inside ``metering.budget``."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_finalize,
            extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do", GenerationTag],
        )
        known = CHEAP_FILTERS | DEEP_FILTERS
        self.filters = {name: _guarded(name, f) for name, f in self.filters.items() if name in known}
        self.filters |= {"tojson": _tojson, "__each": _each, "__text": _text, "__built": _built}
        self.globals = {"range": self.globals["range"], "dict": dict, "namespace": QuietNamespace}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Metering().visit(super()._parse(source, name, filename))
        return tree

    def concat(self, parts: Iterable[str]) -> str:
        """Join the output of a template, macro or block."""
        joined = []
        for part in parts:
            spend(len(part) + 1)
            joined.append(part)
        return "".join(joined)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call *function* if a template may, and pay for it."""
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        kind = next((kind for kind in METHODS if isinstance(owner, kind)), None)
        if kind is not None and name not in METHODS[kind]:
            raise SecurityError(f"{kind.__name__}.{name} is not for chat templates")
        spend(CALL_WORK)
        if isinstance(owner, str):
            args = tuple(map(settled, args))
            pay_for_method(name, owner, args, kwargs)
        elif isinstance(function, LoopContext):
            args = tuple(map(_each, args))
        else:
            _built([*args, *kwargs.values()])
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right`` after paying for its size."""
        sizes = [len(side) for side in (left, right) if isinstance(side, str | list | tuple)]
        numbers = [side for side in (left, right) if isinstance(side, int)]
        if operator == "+":
            spend(sum(sizes) * (1 if isinstance(left, str) else LIST_WORK))
        elif operator == "*" and sizes and numbers:
            spend(sizes[0] * max(0, numbers[0]) * (1 if isinstance(left, str) or isinstance(right, str) else NODE_WORK))
        elif operator == "%" and isinstance(left, str):
            check_format(left)
            weigh([left, right])
        elif len(numbers) == 2:
            check_integers(operator, left, right)
        return super().call_binop(context, operator, left, right)
