"""Which workers are connected, given back and remembered."""

from __future__ import annotations

import pytest

from ollama_zmq.cluster import links as module
from ollama_zmq.cluster.events import Disconnect
from ollama_zmq.cluster.link import Status
from ollama_zmq.cluster.links import LEASE_IDLE_S, Links


@pytest.fixture
def links() -> Links:
    return Links("f00d")


def join(links: Links, address: str, status: Status) -> None:
    links.join((address,), 0.0)
    links[address].status = status


def test_of_workers_that_nobody_names_only_the_last_are_remembered(links, monkeypatch):
    monkeypatch.setattr(module, "LOST_KEPT", 2)
    for status, known in ((Status.READY, "idle"), (Status.CONNECTING, "lost")):
        for name in ("a:1", "b:1", "c:1"):
            join(links, f"{known}-{name}", status)
            links[f"{known}-{name}"].detail = "" if known == "idle" else "no answer"
            links.leave(f"{known}-{name}")
        found = [links.unconnected(f"{known}-{name}").status for name in ("a:1", "b:1", "c:1")]
        assert found == ["not tried", known, known]


def test_who_is_on_his_way_in_is_not_given_back(links):
    join(links, "a:1", Status.HANDSHAKE)
    assert links.leave_idle((), 10 * LEASE_IDLE_S) == []
    links["a:1"].status = Status.READY
    assert links.leave_idle((), 10.5 * LEASE_IDLE_S) == []
    assert links.leave_idle((), 11.5 * LEASE_IDLE_S) != []


def test_nobody_says_goodbye_over_a_connection_that_is_not_made(links):
    join(links, "a:1", Status.CONNECTING)
    assert links.leave("a:1") == [Disconnect("a:1")]


def test_a_worker_is_foreign_to_the_last_who_named_it(links):
    links.join(("a:1",), 0.0, foreign=("a:1",))
    links.join(("a:1",), 0.0)
    assert not links["a:1"].foreign
