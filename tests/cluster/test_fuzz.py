"""Some liars of ``tests/cluster/fuzz_worker.py``; run that for as long as you like."""

import pytest

from ollama_zmq.cluster import answers
from tests.cluster.fuzz_worker import play_one

BELIEVED = {
    "NOT_OF_A_WORKER": (),
    "printable_line": lambda text, _limit=0: text,
    "check_range": lambda *_: None,
}


def test_whatever_a_worker_says_every_load_and_step_ends_and_its_end_names_it(network):
    assert [wrong for seed in range(1, 41) for wrong in play_one(network, seed)[0]] == []


@pytest.mark.parametrize("check", BELIEVED)
def test_a_liar_who_is_believed_is_seen(network, monkeypatch, check):
    monkeypatch.setattr(answers, check, BELIEVED[check])
    assert any(play_one(network, seed)[0] for seed in range(1, 400))
