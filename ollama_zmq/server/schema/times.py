"""Moments as Go prints them."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def rfc3339(nanoseconds: int) -> str:
    """A moment, counted from the epoch, as Go prints it: UTC, up to nine digits, no zeros behind."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{text}{digits}Z"


def now() -> str:
    """The moment, for ``created_at``."""
    return rfc3339(time.time_ns())
