"""Durations are Go's, both ways."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.durations import format_duration, keep_alive_s, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("5m", 300.0),
        ("1h15m30.5s", 4530.5),
        ("-1.5h", -5400.0),
        ("+2s", 2.0),
        (".5s", 0.5),
        ("100µs", 1e-4),
    ],
)
def test_parses_as_go_does(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-", "5", "5 m", "m", "5d", "1h-5m", "five", "9999999h", "-9999999h"])
def test_what_go_refuses_is_refused(text):
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration(text)


def test_negative_keeps_for_ever():
    assert (keep_alive_s(-1), keep_alive_s("-1s"), keep_alive_s(0), keep_alive_s("90s")) == (math.inf, math.inf, 0, 90)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (12_000, "12µs"),
        (850_200_000, "850.2ms"),
        (1_234_567_891, "1.234567891s"),
        (123_500_000_000, "2m3.5s"),
        (3_600_000_000_000, "1h0m0s"),
        (-1_500_000, "-1.5ms"),
    ],
)
def test_prints_as_go_does(nanoseconds, text):
    assert format_duration(nanoseconds) == text


@given(st.integers(-(10**18), 10**18))
def test_what_is_printed_can_be_read(nanoseconds):
    assert parse_duration(format_duration(nanoseconds)) == pytest.approx(nanoseconds / 1e9, rel=1e-9, abs=1e-12)
