"""Model names in requests, read as Ollama reads them before the store sees them.

" smollm2 "      the spaces are cut
smollm2:local    so is ":local", which says that the model is this machine's and not the cloud's
a//b::c          no name: 400 "invalid model name"
"""

from __future__ import annotations

from ollama_zmq.errors import ModelNotFound, RequestError
from ollama_zmq.store.names import parse_name

LOCAL, CLOUD = ":local", ":cloud"


def plain_name(requested: str) -> str:
    """*requested* without what only says where the model is. It need not be a valid name.

    Raises:
        RequestError: it says both that the model is here and that it is not.
    """
    name = requested.strip()
    rest = name[: -len(LOCAL)] if name.lower().endswith(LOCAL) else name
    if (rest is not name and rest.lower().endswith(CLOUD)) or (
        name.lower().endswith(CLOUD) and name[: -len(CLOUD)].lower().endswith(LOCAL)
    ):
        raise RequestError("invalid model name", model=requested)
    return rest


def checked_name(requested: str) -> str:
    """:func:`plain_name` of *requested*, which is a name that a model can have.

    Raises:
        ModelNotFound: it is empty.
        RequestError: no model can be called so.
    """
    name = plain_name(requested)
    if not name:
        raise ModelNotFound("model '' not found", model=requested)
    try:
        parse_name(name)
    except RequestError:
        raise RequestError("invalid model name", model=requested) from None
    return name


def required_name(requested: str) -> str:
    """As :func:`checked_name`, for the routes that say "model is required" of an empty name."""
    if not plain_name(requested):
        raise RequestError("model is required")
    return checked_name(requested)


def named(role: str, requested: str) -> str:
    """As :func:`checked_name`, for the routes that quote a wrong name, an empty one too, after its *role*.

    Raises:
        RequestError: ``source "a//b" is invalid``.
    """
    try:
        return checked_name(requested)
    except RequestError:
        raise RequestError(f'{role} "{requested}" is invalid', model=requested) from None
