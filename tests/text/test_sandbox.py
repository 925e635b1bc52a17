"""A template that came with a downloaded model reaches nothing, changes nothing, and comes to an end."""

import pytest

from ollama_zmq.errors import ModelFileError, RequestError
from ollama_zmq.text.jinja_templates import JinjaTemplate

GROW = "{% set ns = namespace(x=START) %}{% for i in range(99) %}STEP{% endfor %}{{ ns.x }}"


def grown(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


def render(source: str) -> str:
    return JinjaTemplate(source).render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__closure__[0] }}",
        "{{ (messages | map(attribute='__class__') | first).x }}",
        "{{ '{0.__class__.__mro__}'.format(1).x.y }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ lipsum() }}",
        "{{ (5).to_bytes(9, 'big') }}",
        "{{ 'x'.encode() }}",
    ],
)
def test_nothing_outside_can_be_reached(source: str) -> None:
    try:
        assert render(source) == ""
    except RequestError:
        return


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ messages[0].pop('role') }}",
        "{{ messages.clear() }}",
        "{% set x = [2, 1] %}{{ x.sort() }}",
    ],
)
def test_nothing_can_be_changed(source: str) -> None:
    with pytest.raises(RequestError):
        render(source)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'y' * 99999 }}{% endfor %}",
        "{{ range(10**9) | list }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in [1] recursive %}{{ loop(range(99999)) }}{{ loop(range(99999)) }}{% endfor %}",
        grown("'ab'", "{% set ns.x = ns.x + ns.x %}"),
        grown("'ab'", "{% set ns.x = ns.x ~ ns.x %}"),
        grown("'ab'", "{% set ns.x = ns.x | replace('a', ns.x) %}"),
        grown("'ab'", "{% set ns.x = ns.x.replace('a', ns.x) %}"),
        grown("'ab'", "{% set ns.x = [ns.x, ns.x] | join %}"),
        grown("'ab'", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        grown("[1]", "{% set ns.x = [ns.x, ns.x] %}"),
        grown("[1]", "{% set ns.x = ns.x + ns.x %}"),
        grown("9", "{% set ns.x = ns.x * ns.x %}"),
        "{{ 9 ** 9999 }}",
    ],
)
def test_every_loop_and_every_doubling_ends(source: str) -> None:
    with pytest.raises(RequestError):
        render(source)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "expression",
    [
        "'x' * 10**10",
        "['x'] * 10**10",
        "'x'.center(10**10)",
        "'x' | center(10**10)",
        "'x'.ljust(10**10)",
        "'x'.zfill(10**10)",
        "'x' | indent(10**10, true)",
        "'{:10000000000}'.format(1)",
        "'{:{}}'.format(1, 10**10)",
        "'%10000000000d' % 1",
        "'%*d' % (10**10, 1)",
        "'%10000000000d' | format(1)",
        "(['x' * 10**6] * 10**5) | select | join",
        "'y'.join((['x' * 10**6] * 10**5) | select)",
        "range(99999) | map('string') | join('y' * 10**5)",
    ],
)
def test_nothing_large_is_made_before_it_is_paid_for(expression: str) -> None:
    with pytest.raises(RequestError):
        render("{{ " + expression + " }}")


def test_a_namespace_that_holds_itself_can_be_printed() -> None:
    assert render("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}") == "<Namespace>"


def test_a_long_conversation_costs_a_small_part_of_the_budget() -> None:
    source = (
        "{% for m in messages %}{% if loop.last %}{{ messages | length }}{% endif %}{{ m.content + '\n' }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "word " * 1000}] * 1000
    assert len(JinjaTemplate(source).render(messages)) == 1000 * 5001 + 4


def test_a_template_nested_too_deep_is_refused() -> None:
    with pytest.raises((ModelFileError, RequestError)):
        render("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")
