"""What a template's work costs: exactly so much, so that a budget means something."""

from __future__ import annotations

import pytest

from ollama_zmq.text.metering import NODE_WORK, TemplateTooCostly, budget, spend, weigh
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
    parts = ["abc", "", ""]
    with budget(6):
        assert Sandbox().concat(parts) == "abc"
    with budget(5), pytest.raises(TemplateTooCostly):
        Sandbox().concat(parts)


@pytest.mark.parametrize(
    "expression",
    ["'x' * 5000", "5000 * 'x'", "[1] * 5000", "text + text", "'%s%s' % (text, text)"],
)
def test_what_multiplies_or_joins_is_paid_for_before_it_is_made(expression):
    """It is never shown, so nothing else pays for it."""
    template = Sandbox().from_string("{% set made = " + expression + " %}")
    with budget(2_000_000):
        assert template.render(text="y" * 3000) == ""
    with budget(4_000), pytest.raises(TemplateTooCostly):
        template.render(text="y" * 3000)
