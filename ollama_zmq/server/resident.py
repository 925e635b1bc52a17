"""A model in memory as requests see it: who uses it, since when, and until when it stays."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ollama_zmq.store.stored_model import StoredModel
from ollama_zmq.text.model_template import chat_template
from ollama_zmq.text.templates import ChatTemplate

if TYPE_CHECKING:
    from ollama_zmq.bus.loads import LoadedModel

MAX_TEMPLATES = 16  # a request may bring its own
FOREVER_S = 290 * 365.0 * 86400  # what Ollama's largest duration comes to


class Timer(Protocol):
    """What ``loop.call_later`` returns."""

    def cancel(self) -> None:
        """Do not fire."""


@dataclass(slots=True, eq=False)
class Resident:
    """A model in memory.

    Attributes:
        model: as it was in the store when it was loaded.
        expires_at: when it will be unloaded if nobody comes, in seconds since the epoch.
        users: requests that run on it; unused: set while there are none.
        last_used: counts uses of all models.
        draining: no new users, unloaded when the last one leaves; who comes meanwhile waits for the next load.
    """

    model: StoredModel
    loaded: LoadedModel
    keep_alive_s: float
    expires_at: float = 0.0
    users: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    last_used: int = 0
    draining: bool = False
    timer: Timer | None = None
    templates: dict[str | None, ChatTemplate] = field(default_factory=dict)

    def template(self, go_template: str | None) -> ChatTemplate:
        """The chat template of this file, or *go_template* in its place; the last few are kept compiled."""
        if go_template not in self.templates:
            if len(self.templates) >= MAX_TEMPLATES:
                self.templates.clear()
            metadata = self.loaded.network.gguf.metadata
            self.templates[go_template] = chat_template(metadata, go_template, tokenizer=self.loaded.tokenizer)
        return self.templates[go_template]

    def enter(self, keep_alive_s: float | None, now: float) -> None:
        """One user more; its ``keep_alive`` holds from here on if it has one."""
        self.stop_timer()
        self.users += 1
        self.unused.clear()
        if keep_alive_s is not None:
            self.keep_alive_s = keep_alive_s
        self.touch(now)

    def leave(self) -> bool:
        """One user less; whether it was the last one."""
        self.users -= 1
        if self.users == 0:
            self.unused.set()
        return self.users == 0

    def touch(self, now: float) -> None:
        """Let it stay for its ``keep_alive`` from *now* on."""
        self.expires_at = now + min(self.keep_alive_s, FOREVER_S)

    def start_timer(self, call_later: Callable[[float, Callable[[], None]], Timer], on_end: Callable[[], None]) -> None:
        """Call *on_end* when its ``keep_alive`` is over, unless it is without end."""
        self.stop_timer()
        if math.isfinite(self.keep_alive_s):
            self.timer = call_later(self.keep_alive_s, on_end)

    def stop_timer(self) -> None:
        """Nothing happens when its ``keep_alive`` is over."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
