"""A model's name with a typing error: which of the server's models may be meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

from ollama_zmq.client import Client
from ollama_zmq.errors import OllamaZmqError

_NOT_FOUND = re.compile(r"""model ['"](?P<name>.+)['"] not found""")
_DEFAULT_TAG = ":latest"


def with_near_model(message: str) -> str:
    """*message* of a model that is not there, and the one of the server that may have been meant."""
    found = _NOT_FOUND.search(message)
    near = near_model(found["name"], _names()) if found else ""
    return f"{message}; did you mean {near}?" if near else message


def near_model(name: str, known: Sequence[str]) -> str:
    """The name of *known* that *name* was probably meant to be; "" if none is like it.

    A name whose tag or family alone was left out or mistyped counts as like it; the tag ``latest`` is not said.
    """
    shown = {other.removesuffix(_DEFAULT_TAG).lower(): other.removesuffix(_DEFAULT_TAG) for other in known}
    asked = name.removesuffix(_DEFAULT_TAG).lower()
    if near := get_close_matches(asked, shown, 1):
        return shown[near[0]]
    family = asked.partition(":")[0]
    return next((shown[other] for other in shown if other.partition(":")[0] == family), "")


def _names() -> list[str]:
    """The models of the server; none when it does not say."""
    try:
        with Client() as client:
            return [model["name"] for model in client.tags()]
    except OllamaZmqError:
        return []
