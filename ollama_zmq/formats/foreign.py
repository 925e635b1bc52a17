"""Text and JSON from outside: bodies of requests, and what other programs have written into a store.

JSON is read as Go's encoding/json reads it:

    half a surrogate    (``"\\ud83d"``, sent by editors that cut inside an emoji) is read as U+FFFD
    bytes not UTF-8     are read as U+FFFD, one for each byte
    a byte order mark   in front is skipped; Go refuses it, PowerShell writes it
    behind the value    nothing is read

msgspec reads what is plain JSON; only what it refuses goes through Python's slower decoder.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, NoReturn

import msgspec

_BLANKS = " \t\n\r"
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def json_value(raw: bytes) -> Any:
    """The first JSON value in *raw*. Raises ValueError or RecursionError if there is none."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace_each_byte")
    whole = _ESCAPE.sub(lambda found: r"\ufffd" if found[1] else found[0], text)
    value, _ = _DECODER.raw_decode(whole.lstrip(_BLANKS))
    return value


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("replace_each_byte", _replace_each_byte)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"not a JSON value: {name}")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
