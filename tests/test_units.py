"""Sizes, counts and durations as Ollama prints them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.units import human_bytes, human_duration, human_number, human_time, human_time_of

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1500, "1.5 KB"),
        (1234567, "1.2 MB"),
        (98_362_432, "98 MB"),
        (999_999_999, "999 MB"),
        (1_000_000_000, "1 GB"),
        (4_661_224_676, "4.7 GB"),
        (1_999_999_999_999, "2.0 TB"),
        (12_345_678_901_234, "12 TB"),
    ],
)
def test_bytes(nbytes, text):
    assert human_bytes(nbytes) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1K"),
        (26_500, "26K"),
        (137_000_000, "137M"),
        (134_515_008, "134.52M"),
        (7_000_000_000, "7B"),
        (7_615_616_512, "7.6B"),
        (1_026_408_232_448, "1.0T"),
    ],
)
def test_numbers(count, text):
    assert human_number(count) == text


@pytest.mark.parametrize(
    ("elapsed", "text"),
    [
        (timedelta(milliseconds=999), "Less than a second"),
        (timedelta(seconds=1), "1 second"),
        (timedelta(seconds=59.9), "59 seconds"),
        (timedelta(seconds=60), "About a minute"),
        (timedelta(minutes=2), "2 minutes"),
        (timedelta(minutes=59, seconds=59), "59 minutes"),
        (timedelta(hours=1), "About an hour"),
        (timedelta(hours=1.4), "About an hour"),
        (timedelta(hours=2.5), "3 hours"),
        (timedelta(hours=47.4), "47 hours"),
        (timedelta(hours=47.6), "2 days"),
        (timedelta(days=13.9), "13 days"),
        (timedelta(days=14), "2 weeks"),
        (timedelta(days=59), "8 weeks"),
        (timedelta(days=60), "2 months"),
        (timedelta(days=729), "24 months"),
        (timedelta(days=730), "2 years"),
    ],
)
def test_durations(elapsed, text):
    assert human_duration(elapsed) == text


@pytest.mark.parametrize(
    ("ahead", "text"),
    [
        (timedelta(hours=-2), "2 hours ago"),
        (timedelta(0), "Less than a second ago"),
        (timedelta(minutes=4), "4 minutes from now"),
        (timedelta(days=365 * 20), "20 years from now"),
        (timedelta(days=365 * 292), "Forever"),
    ],
)
def test_moments(ahead, text):
    assert human_time(NOW + ahead, NOW) == text


@given(st.integers(0, 10**15))
def test_bytes_never_need_more_than_a_column(nbytes):
    number, unit = human_bytes(nbytes).split()
    assert len(number) <= 4
    assert unit in ("B", "KB", "MB", "GB", "TB")


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=10_000)))
def test_a_duration_is_never_none_of_a_unit_nor_one_of_many(elapsed):
    assert not human_duration(elapsed).startswith(("0 ", "1 ")) or human_duration(elapsed) == "1 second"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-01-01T10:00:00Z", "2 hours ago"),
        ("2026-01-01T10:00:00", "2 hours ago"),
        ("2026-01-01T14:00:00.123456789+01:00", "About an hour from now"),
        ("0001-01-01T00:00:00Z", "Never"),
        ("soon", "-"),
    ],
)
def test_a_moment_of_an_answer_is_shown_as_ollama_does(text, shown):
    assert human_time_of(text, datetime(2026, 1, 1, 12, tzinfo=UTC)) == shown
