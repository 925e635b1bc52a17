"""What a template's work costs: exactly so much, so that a budget means something."""

from __future__ import annotations

import pytest

from ollama_zmq.text.metering import (
    COPIED,
    NODE_WORK,
    PART_WORK,
    TemplateTooCostly,
    budget,
    hold,
    size_of,
    spend,
    weigh,
    width,
)
from ollama_zmq.text.sandbox import Sandbox


def test_a_budget_can_be_spent_to_the_last():
    with budget(3):
        spend(3)
        with pytest.raises(TemplateTooCostly):
            spend(1)


def test_a_value_costs_its_nodes_and_characters_shared_ones_each_time():
    shared = ["ab"]
    value = [shared, shared, {"key": "x"}]
    characters, strings, nodes = 2 + 2 + 3 + 1, 4, 4
    cost = characters + strings + nodes * NODE_WORK
    with budget(cost):
        weigh(value)
    with budget(cost - 1), pytest.raises(TemplateTooCostly):
        weigh(value)


def test_an_output_costs_its_characters_and_its_parts_empty_ones_too():
    parts = ["abc" * COPIED, "", ""]
    cost = 3 + 3 * PART_WORK
    with budget(cost):
        assert Sandbox().concat(parts) == parts[0]
    with budget(cost - 1), pytest.raises(TemplateTooCostly):
        Sandbox().concat(parts)


@pytest.mark.parametrize(
    "expression",
    ["'x' * 5000", "5000 * 'x'", "[1] * 5000", "text * 2", "'%s%s' % (text, text)"],
)
def test_what_multiplies_or_joins_is_paid_for_before_it_is_made(expression):
    """It is never shown, so nothing else pays for it."""
    template = Sandbox().from_string("{% set made = " + expression + " %}")
    with budget(2_000_000):
        assert template.render(text="y" * 3000) == ""
    with budget(4_000), pytest.raises(TemplateTooCostly):
        template.render(text="y" * 3000)


def test_memory_is_counted_in_bytes_and_is_spent_to_the_last():
    with budget(memory=3):
        hold(3)
        with pytest.raises(TemplateTooCostly):
            hold(1)


@pytest.mark.parametrize(("text", "n_bytes"), [("a", 1), ("é" * 99, 1), ("日" * 99, 2), ("\U0001f389" * 99, 4)])
def test_a_text_is_as_wide_as_its_widest_character(text, n_bytes):
    assert width(text) == n_bytes
    assert size_of({"a": [text]}) == (1 + len(text), 1 + n_bytes * len(text))


def test_the_budget_grows_with_the_text_of_the_request():
    with budget(0, 0, given=["日" * 100]) as meter:
        spend(1600)
        hold(3200)
        assert (meter.work, meter.memory) == (0, 0)


def test_what_no_price_sees_ends_with_the_processor_time(monkeypatch):
    """The last resort: a clock that stands far behind the end of the render."""
    with budget() as meter:
        monkeypatch.setattr("time.thread_time", lambda: meter.cpu_end + 1)
        with pytest.raises(TemplateTooCostly, match="longer"):
            spend(64 << 12)


@pytest.mark.parametrize(
    "expression",
    ["text[1:]", "text == other", "text in other", "text < other", "text is eq(other)", "other.count(text)",
     "[text] | select('eq', other) | list", "text.rfind(short)"],
)  # fmt: skip
def test_what_reads_or_copies_a_text_costs_in_proportion_to_it(expression):
    template = Sandbox().from_string("{% set made = " + expression + " %}")

    def cost(n: int) -> int:
        with budget() as meter:
            begin = meter.work
            template.render(text="y" * n, other="y" * (n - 1) + "y", short="yy")
            return begin - meter.work

    assert cost(80_000) - cost(40_000) >= 40_000 // COPIED
