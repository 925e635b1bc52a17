"""A Jinja environment for templates that came with a downloaded model: they compute text, and nothing else.

Jinja's immutable sandbox keeps a template from Python's internals and from changing its arguments. It does not keep
one from looping for ever, from ``"x" * 10**10``, or from a list that holds the same list twice, forty deep: metering.py
does, and this environment calls it wherever a template can repeat something or make something larger. Methods and
filters are lists of what is allowed, so that a new release of Jinja cannot add one that multiplies.
"""

from __future__ import annotations

import json
import operator as operators
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from ollama_zmq.text.metering import (
    CALL_WORK,
    COPIED,
    LIST_WORK,
    NODE_WORK,
    OBJECT,
    PART_WORK,
    REPR,
    check_integers,
    copied,
    hold,
    paid,
    pay_for_comparison,
    pay_for_filter,
    pay_for_format,
    pay_for_method,
    settled,
    spend,
    weigh,
    weigh_key,
    width,
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


COMPARING = {
    **{name: name for name in ("eq", "ne", "lt", "le", "gt", "ge", "in")},
    "==": "eq",
    "equalto": "eq",
    "!=": "ne",
    "<": "lt",
    "lessthan": "lt",
    "<=": "le",
    ">": "gt",
    "greaterthan": "gt",
    ">=": "ge",
}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    **{name: getattr(operators, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "lteq": operators.le,
    "gteq": operators.ge,
    "in": lambda item, container: item in container,
    "notin": lambda item, container: item not in container,
}
STATEMENT_WORK = 8  # a node of a body takes some 50 ns a turn


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter *function*, paying first."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # Jinja's own argument comes before the value

    @wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        value, options = settled(args[first]), args[first + 1 :]
        pay_for_filter(name, value, (*options, *kwargs.values()), deep=name not in CHEAP_FILTERS)
        made = function(*args[:first], value, *options, **kwargs)
        return "".join(made) if isinstance(made, Markup) else made  # what Markup is added to would grow unseen

    return filtered


def _tested(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The test *function*, paying first."""
    operator = COMPARING.get(name)

    @wraps(function)
    def tested(*args: Any, **kwargs: Any) -> Any:
        if operator and len(args) == 2:
            pay_for_comparison(operator, args[0], args[1])
        else:
            spend(len(args[-1]) if name in ("lower", "upper") and isinstance(args[-1], str) else PART_WORK)
            check = [arg for arg in args if isinstance(arg, int)]
            if name == "divisibleby" and len(check) == 2:
                check_integers("%", *check)
        return function(*args, **kwargs)

    return tested


class _Metering(NodeTransformer):
    """Rewrites what can repeat or grow into a filter that pays for it."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        n_nodes = sum(1 for _ in node.find_all(nodes.Node))
        node.iter = _filter("__each", node.iter, nodes.Const(n_nodes * STATEMENT_WORK))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._with_step(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._with_step(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:  # noqa: N802
        return self._with_step(node)

    def _with_step(self, node: Any) -> nodes.Node:
        """*node* with a first statement that pays for all of its body."""
        self.generic_visit(node)
        work = nodes.Const(sum(1 for _ in node.find_all(nodes.Node)) * STATEMENT_WORK)
        node.body.insert(0, nodes.ExprStmt(_filter("__step", work), lineno=node.lineno))
        return cast(nodes.Node, node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        rest = [part for operand in node.ops for part in (nodes.Const(operand.op), operand.expr)]
        return _filter("__compare", node.expr, *rest)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = (node.arg.start, node.arg.stop, node.arg.step)
        return _filter("__slice", node.node, *(nodes.Const(None) if end is None else end for end in ends))

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


def _filter(name: str, node: nodes.Node, *options: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [*options], [], None, None, lineno=node.lineno)


class _Turns:
    """What a loop goes through, every turn paid for; what has a length keeps it, so that ``loop.last`` is known."""

    def __init__(self, iterable: Any, work: int) -> None:
        self._iterable, self._work = iterable, work

    def __len__(self) -> int:
        return len(self._iterable)

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            spend(self._work)
            yield item


def _each(iterable: Any, body_work: int = 0) -> Iterable[Any]:
    """*iterable*, every turn paid for, with *body_work* for the statements that it runs."""
    if isinstance(iterable, list | tuple | dict | str | range):
        return _Turns(iterable, NODE_WORK + body_work)
    return paid(iterable, NODE_WORK + body_work)


def _compare(left: Any, *rest: Any) -> Any:
    """``left op right op right ...``; unlike Python's chain, all of it is computed before."""
    result = True
    for operator, right in zip(rest[::2], rest[1::2], strict=True):
        pay_for_comparison(operator, left, right)
        result = _COMPARISONS[operator](left, right)
        if not result:
            return result
        left = right
    return result


def _slice(value: Any, *ends: Any) -> Any:
    part = slice(*ends)
    if isinstance(value, str | list | tuple):
        n_items = len(range(*part.indices(len(value))))
        if isinstance(value, str):
            copied(value, n_items)
        else:
            spend(PART_WORK + n_items)
            hold(OBJECT + 8 * n_items)
    return value[part]


def _text(parts: list[object]) -> str:
    n_characters, widest = weigh(parts)
    only_texts = all(isinstance(part, str) for part in parts)
    hold(OBJECT + n_characters * (widest if only_texts else REPR))
    return "".join(map(str, parts))


def _built(value: object) -> object:
    """A new list or dict; text in it is only referred to, so only nodes are paid for."""
    hold(sys.getsizeof(value) + 16)
    rest = [value]
    while rest:
        part = rest.pop()
        spend(NODE_WORK)
        if isinstance(part, dict):
            rest += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple):
            rest += part
    return value


def _finalize(value: object) -> object:
    if not isinstance(value, str):
        hold(OBJECT + weigh(value)[0] * REPR)
    return value


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON as Hugging Face's chat templates expect it: not escaped for HTML, no ASCII armour.

    ``separators`` and ``sort_keys`` are passed on.
    """
    value = settled(value)
    allowed = {key: options[key] for key in ("separators", "sort_keys") if key in options}
    indent = min(indent, 16) if indent else indent
    n_characters, _ = weigh(value)
    n_between = weigh([*(allowed.get("separators") or ())])[0] + 8
    n_nodes, depth = _extent(value)
    n_between = n_nodes * (n_between + depth * (indent or 0))
    spend(n_between)
    hold(n_characters * REPR + n_between + OBJECT * n_nodes)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **allowed)


def _extent(value: object) -> tuple[int, int]:
    """How many nodes *value* has, and how deep they lie."""
    level, n_nodes, depth = [value], 0, 0
    while level:
        n_nodes, depth = n_nodes + len(level), depth + 1
        below: list[object] = []
        for part in level:
            if isinstance(part, list | tuple):
                below += part
            elif isinstance(part, dict):
                below += part.values()
        level = below
    return n_nodes, depth


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

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

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
        self.filters |= {"__compare": _compare, "__slice": _slice, "__step": spend}
        self.tests = {name: _tested(name, cast(Callable[..., Any], test)) for name, test in self.tests.items()}
        self.globals = {"range": self.globals["range"], "dict": dict, "namespace": QuietNamespace}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Metering().visit(super()._parse(source, name, filename))
        return tree

    def concat(self, parts: Iterable[str]) -> str:
        """Join the output of a template, macro or block."""
        joined, n_characters, widest = [], 0, 1
        for part in parts:
            spend(PART_WORK + len(part) // COPIED)
            hold(8)
            n_characters += len(part)
            widest = max(widest, width(part))
            joined.append(part)
        hold(OBJECT + n_characters * widest)
        return "".join(joined)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``; the hash of a tuple is paid for."""
        weigh_key(argument)
        return super().getitem(obj, argument)

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
        elif name in ("count", "index") and isinstance(owner, list | tuple):
            pay_for_comparison("in", args[0] if args else None, owner)
        elif name == "copy":
            _built(owner)
        elif isinstance(function, Macro) or function in (dict, QuietNamespace):
            hold(512)
            _built([*args, *kwargs.values()])
        else:
            weigh([*args, *kwargs.values()])
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right`` after paying for its size."""
        sizes = [len(side) for side in (left, right) if isinstance(side, str | list | tuple)]
        numbers = [side for side in (left, right) if isinstance(side, int)]
        texts = [side for side in (left, right) if isinstance(side, str)]
        item_bytes = max(map(width, texts)) if texts else 8
        if operator == "+":
            spend(sum(sizes) * LIST_WORK if not texts else sum(sizes) // COPIED)
            hold(OBJECT + sum(sizes) * item_bytes)
        elif operator == "*" and sizes and numbers:
            n_items = sizes[0] * max(0, numbers[0])
            spend(n_items * (1 if texts else NODE_WORK))
            hold(OBJECT + n_items * item_bytes)
        elif operator == "%" and isinstance(left, str):
            pay_for_format(left, weigh([left, right])[0], 4)
        elif len(numbers) == 2:
            check_integers(operator, left, right)
        return super().call_binop(context, operator, left, right)
