"""The bytes of the protocol. If a test here must change, ``PROTOCOL`` changes, or a field with a default was added."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from ollama_zmq.version import PROTOCOL
from ollama_zmq.wire.frames import decode, encode
from ollama_zmq.wire.messages import AnyMessage
from tests.wire.golden import GOLDEN
from tests.wire.samples import SAMPLES

DOCUMENT = Path(__file__).parents[2] / "docs" / "wire.md"
TAGS = [str(message.__struct_config__.tag) for message in get_args(AnyMessage)]


def test_every_message_has_a_sample():
    assert {type(envelope.message) for envelope in SAMPLES} == set(get_args(AnyMessage))


def test_golden_bytes_are_of_this_protocol():
    assert PROTOCOL == 2


@pytest.mark.parametrize("envelope", SAMPLES, ids=lambda e: type(e.message).__name__)
def test_messages_have_these_bytes(envelope):
    assert encode(envelope) == [GOLDEN[type(envelope.message).__name__]]


@pytest.mark.parametrize("envelope", SAMPLES, ids=lambda e: type(e.message).__name__)
def test_these_bytes_are_the_messages(envelope):
    assert decode([GOLDEN[type(envelope.message).__name__]]) == envelope


def test_every_message_is_described_for_implementers():
    described = DOCUMENT.read_text()
    assert [tag for tag in TAGS if f"**`{tag}`**" not in described] == []


def examples():
    """Every message that the document shows, as a map."""
    described = re.sub(r"\u2039.*?\u203a", 'b""', DOCUMENT.read_text())
    return [ast.literal_eval(text) for text in re.findall(r'\{"t": .*?\}(?=\n```|`)', described, re.DOTALL)]


def test_every_example_has_the_fields_of_its_message_and_no_others():
    shown = {}
    for example in examples():
        message = msgspec.convert(example, AnyMessage)
        carried = tuple(name for name, _, _ in example.pop("tensors", []))
        assert (example.keys() - {"t"}, carried) == (set(message.__struct_fields__), message.tensors)
        shown[example["t"]] = message
    assert shown.keys() == set(TAGS)
