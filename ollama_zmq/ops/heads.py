"""What ops have in common that work on each head of a row, or on the row as one head."""

from collections.abc import Mapping
from typing import Any

from ollama_zmq.ops.spec import Attr, Size

MAX_WIDTH = 1 << 20
HEAD_DIM = Attr(int, 1, MAX_WIDTH)  # a norm over the whole row has the row's width


def heads_and_vectors(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    """Return a complaint where heads do not fill the row D, or a vector (P, Q) is neither a head's nor a row's."""
    D, E = sizes["D"], attrs["head_dim"]
    if not isinstance(D, int) or D % E:
        return f"x: D={D} is no multiple of head_dim={E}"
    wrong = [sizes[symbol] for symbol in ("P", "Q") if symbol in sizes and sizes[symbol] not in (E, D)]
    return f"a vector of {wrong[0]} numbers, expected head_dim={E} or D={D}" if wrong else ""
