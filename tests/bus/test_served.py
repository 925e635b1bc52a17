"""A load ends once, for whoever waits for it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from ollama_zmq.bus.served import Load
from ollama_zmq.errors import OpError


@pytest.fixture
def load() -> Load:
    return Load(Future(), 0.0)


def test_the_first_end_of_a_load_counts(load):
    load.end(OpError("first"))
    load.end(OpError("second"))
    with pytest.raises(OpError, match="first"):
        load.future.result(0)


def test_a_load_that_was_canceled_ends_in_silence(load):
    assert load.future.cancel()
    load.end(OpError("nobody hears it"))
    assert load.future.cancelled()


def test_a_load_that_has_ended_cannot_be_canceled(load):
    ended: list[Any] = []
    load.future.add_done_callback(ended.append)
    load.end(OpError("over"))
    assert (load.future.cancel(), len(ended)) == (False, 1)
