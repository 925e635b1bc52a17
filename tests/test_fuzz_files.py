"""Some inputs of each target of ``tests/fuzz_files.py``; run that for as long as you like."""

import random

import pytest

from tests.fuzz_files import TARGETS, broken_law

N_INPUTS = {"modelfile": 1000, "gguf": 60, "go": 60, "jinja": 60, "tokens": 60}


@pytest.mark.parametrize("name", TARGETS)
def test_a_foreign_file_is_read_or_refused_and_nothing_else(name, tmp_path, monkeypatch):
    rng, target = random.Random(1), TARGETS[name](tmp_path)
    monkeypatch.setattr(target, "limit_s", float("inf"))  # how long it takes depends on the machine
    for _ in range(N_INPUTS[name]):
        given = target.make(rng)
        assert not (wrong := broken_law(target, given)), (wrong, given)


def test_a_broken_law_is_seen(tmp_path, monkeypatch):
    target = TARGETS["modelfile"](tmp_path)
    monkeypatch.setattr(target, "run", lambda _raw: [].pop())
    assert "IndexError" in broken_law(target, b"")
