"""SentencePiece's Unigram written from its description, on bytes: its table of characters, and Viterbi over all tokens.

The table (``precompiled_charsmap``) is a double array of uint32 behind its length in bytes, then texts that end with
a zero. A node's unit holds the offset of its children (bits 10 and up, times 256 where bit 9 is set), its label (bits
0 to 7), and whether one of its children is a leaf (bit 8), whose unit is the place of the replacing text.
"""

import struct
from collections.abc import Sequence

SPACE = "▁".encode()
MOST = 64  # bytes of a token


def replaced(text: bytes, table: bytes) -> bytes:
    """*text* with every longest prefix that *table* knows replaced."""
    (nbytes,) = struct.unpack_from("<I", table)
    units = struct.unpack_from(f"<{nbytes // 4}I", table, 4)
    texts = table[4 + nbytes :]

    def offset(unit: int) -> int:
        return (unit >> 10) << ((unit & (1 << 9)) >> 6)

    out, i = bytearray(), 0
    while i < len(text):
        node, found, length = offset(units[0]), None, 0
        for j in range(i, len(text)):
            node ^= text[j]
            if not text[j] or node >= len(units) or units[node] & 0x800000FF != text[j]:
                break
            unit = units[node]
            node ^= offset(unit)
            if unit >> 8 & 1:
                found, length = units[node] & 0x7FFFFFFF, j - i + 1
        if found is None:
            length = 1
            while i + length < len(text) and text[i + length] & 0xC0 == 0x80:
                length += 1
            out += text[i : i + length]
        else:
            out += texts[found : texts.index(0, found)]
        i += length
    return bytes(out)


def best_path(text: bytes, pieces: dict[bytes, tuple[int, float]], unknown: int, penalty: float) -> list[int]:
    """The ids of the path of *text* with the largest sum of scores; unknown characters beside each other are one."""
    best: list[tuple[float, int, int]] = [(0.0, -1, -1)] + [(-float("inf"), -1, -1)] * len(text)
    for i in range(len(text)):
        if best[i][0] == -float("inf"):
            continue
        width = 1
        while i + width < len(text) and text[i + width] & 0xC0 == 0x80:
            width += 1
        options = [(text[i:j], j) for j in range(i + 1, min(i + MOST, len(text)) + 1)]
        known = [(j, *pieces[piece]) for piece, j in options if piece in pieces]
        if not any(j == i + width for j, _, _ in known):
            known.append((i + width, unknown, penalty))
        for j, token_id, score in known:
            if best[i][0] + score > best[j][0]:
                best[j] = (best[i][0] + score, i, token_id)
    path: list[int] = []
    at = len(text)
    while at > 0:
        _, at, token_id = best[at]
        if not (token_id == unknown and path and path[-1] == unknown):
            path.append(token_id)
    return path[::-1]


class Unigram:
    """A vocabulary that merges spaces and puts one in front; *matched* are its plain tokens."""

    def __init__(
        self, texts: Sequence[str], scores: Sequence[float], table: bytes, matched: Sequence[int], unknown: int
    ) -> None:
        self.pieces = {texts[i].encode(): (i, scores[i]) for i in matched}
        self.table, self.unknown = table, unknown
        self.penalty = min(scores[i] for i in matched) - 10

    def token_ids(self, text: str) -> list[int]:
        words = [word for word in replaced(text.encode(), self.table).split(b" ") if word]
        return best_path(b"".join(SPACE + word for word in words), self.pieces, self.unknown, self.penalty)
