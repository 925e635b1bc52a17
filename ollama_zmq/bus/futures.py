"""Futures between the broker's threads and those that wait for it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def settle(future: Future[T], outcome: T | Exception) -> None:
    """End *future* with *outcome*; nothing happens when it was cancelled or has ended."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
