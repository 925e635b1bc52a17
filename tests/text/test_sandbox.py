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


EMOJI = "{% set a = '\U0001f389' * 2000000 %}"
LONG = "{% set a = 'x' * 20000000 %}{% set b = 'x' * 20000000 %}"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "source",
    [
        LONG + "{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
        LONG + "{% for i in range(99999) %}{% if a in b %}{% endif %}{% endfor %}",
        LONG + "{% for i in range(99999) %}{% if a is eq b %}{% endif %}{% endfor %}",
        LONG + "{% for i in range(99999) %}{% set c = a[1:] %}{% endfor %}",
        LONG + "{% for i in range(99999) %}{% set c = a.rfind(b) %}{% endfor %}",
        EMOJI + "{% set n = namespace(l=[]) %}{% for i in range(999) %}{% set n.l = n.l + [a[i:]] %}{% endfor %}",
        grown("[1]", "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% if ns.x == ns.y %}{% endif %}"),
        "{% for i in range(9999) %}{% if range(9999) | sort %}{% endif %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}"
        + "{% set a = b %}" * 4000
        + "{% endfor %}{% endfor %}",
        "{% macro f() %}"
        + "{% set a = b %}" * 4000
        + "{% endmacro %}{% for i in range(99999) %}{% if f() %}{% endif %}"
        "{% endfor %}",
        "{{ ('a ' * 9000000) | title | length }}",
        "{{ ('<>' * 3000000) | striptags | length }}",
        "{{ 1.5 | round(10 ** 9, 'ceil') }}",
        "{{ '%(a)9999d' * 100000 % {'a': 1} }}",
        "{{ ('\x01' * 30000000) | tojson | length }}",
        "{{ ('x' * 3000000).strip('abcdefgh' * 30000 + 'x') }}",
        "{{ ('\U0001f389' * 9000000).split('\U0001f389') | length }}",
    ],
)
def test_no_work_on_long_texts_is_free(source: str) -> None:
    with pytest.raises(RequestError, match=r"than is allowed|digits"):
        render(source)


def test_a_text_of_ten_megabytes_passes_a_template_that_touches_it_often() -> None:
    source = (
        "{% for m in messages[::-1] %}{% if m.content is string and not (m.content.startswith('<t>') and"
        " m.content.endswith('</t>')) and '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    text = "日本 text\n" * 1_250_000
    shown = JinjaTemplate(source).render([{"role": "user", "content": text}] * 2)
    assert shown == ("<|im_start|>user\n" + text.strip() + "<|im_end|>") * 2


def test_comparisons_and_slices_mean_what_they_mean_in_python() -> None:
    source = (
        "{{ 1 < 2 <= 2 }} {{ 1 < 2 > 2 }} {{ 'a' in 'ab' }} {{ 1 not in [1] }} {{ 'abcd'[1:3] }} {{ [1, 2, 3][::-1] }}"
    )
    assert render(source) == "True False True False bc [3, 2, 1]"
