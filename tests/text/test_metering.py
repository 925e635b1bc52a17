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
