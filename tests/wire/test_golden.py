"""The bytes of the protocol. If a test here must change, ``PROTOCOL`` changes, or a field with a default was added."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from ollama_zmq.version import PROTOCOL
from ollama_zmq.wire.frames import decode, encode
from ollama_zmq.wire.messages import AnyMessage
from tests.wire.golden import GOLDEN
from tests.wire.samples import SAMPLES

TAGS = [str(message.__struct_config__.tag) for message in get_args(AnyMessage)]


def test_every_message_has_a_sample():
    assert {type(envelope.message) for envelope in SAMPLES} == set(get_args(AnyMessage))


def test_golden_bytes_are_of_this_protocol():
    assert PROTOCOL == 1


@pytest.mark.parametrize("envelope", SAMPLES, ids=lambda e: type(e.message).__name__)
def test_messages_have_these_bytes(envelope):
    assert encode(envelope) == GOLDEN[type(envelope.message).__name__]


@pytest.mark.parametrize("envelope", SAMPLES, ids=lambda e: type(e.message).__name__)
def test_these_bytes_are_the_messages(envelope):
    assert decode(GOLDEN[type(envelope.message).__name__]) == envelope


def test_every_message_is_described_for_implementers():
    described = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
    assert [tag for tag in TAGS if f"**`{tag}`**" not in described] == []
