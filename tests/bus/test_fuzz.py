"""Some inputs of each target of ``tests/bus/fuzz_bus.py``; run that for as long as you like."""

import random

import pytest

from tests.bus import fuzz_bus
from tests.bus.fuzz_bus import decode_one, fuzz_worker


def test_mangled_messages_decode_or_are_refused(monkeypatch):
    monkeypatch.setattr(fuzz_bus, "LIMIT_S", float("inf"))  # how long it takes depends on the machine
    rng = random.Random(1)
    assert [said for _ in range(3000) if (said := decode_one(rng))] == []


@pytest.mark.parametrize("seed", [1, 2])
def test_a_worker_lives_on_after_hostile_messages(seed):
    assert fuzz_worker(random.Random(seed), float("inf"), n_rounds=4) == []


def test_a_decoder_that_raises_something_else_is_seen(monkeypatch):
    monkeypatch.setattr(fuzz_bus, "decode", lambda _frames: [].pop())
    assert "IndexError" in decode_one(random.Random(1))
