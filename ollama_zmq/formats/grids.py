"""Blocks of the IQ1, IQ2 and IQ3 types: 256 values, each a number from a grid times a small scale times the block's.

    value[k] = d * unit * scale[k / 16] * number[k]

with whole numbers for the last two. The factors are so short that every product of theirs is exact in float32: any
order of multiplications gives the bits of ``dequantize_row_*`` in ``ggml-quants.c``.

Layouts, d being float16; an index is the number of a row of the type's grid, 8 values (IQ3: 4); a sign is 1 bit per
value, of which 7 are stored for every 8 where it says so: the eighth makes their number even.

    IQ2_XXS  d, 8 x (4 indices, 4 x 7 signs + scale of 4 bits)                      scale of 32, 2 s + 1, unit 1/8
    IQ2_XS   d, 32 x (index of 9 bits + 7 signs), 8 bytes of scales                 scale of 16, 2 s + 1, unit 1/8
    IQ2_S    d, 32 indices, 32 bytes of signs, 8 of index bits 8-9, 8 of scales     scale of 16, 2 s + 1, unit 1/8
    IQ3_XXS  d, 64 indices, 8 x (4 x 7 signs + scale of 4 bits)                     scale of 32, 2 s + 1, unit 1/4
    IQ3_S    d, 64 indices, 8 bytes of index bit 8, 32 of signs, 4 of scales        scale of 32, 2 s + 1, unit 1
    IQ1_S    d, 32 indices, 8 x (4 x 3 index bits, scale of 3 bits, sign of delta)  scale of 32, 2 s + 1, unit 1/8
    IQ1_M    32 indices, 32 x (3 index bits, sign of delta), 4 x (4 scales of 3 bits, 4 bits of d)    scale of 16

The numbers of IQ1 are 8 g + 1, or 8 g - 1 where delta is negative, g = -1, 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ollama_zmq.formats.grid_tables import grid
from ollama_zmq.formats.quants import QuantType

Bytes = NDArray[np.uint8]
Words = NDArray[np.integer[Any]]


class GridBlocks(NamedTuple):
    """The parts of n blocks.

    Attributes:
        d: bits of float16 [n].
        scales: int8 [n, 16], one for every 16 values.
        numbers: int8 [n, 256].
        unit: a power of two.
    """

    d: NDArray[np.uint16]
    scales: NDArray[np.int8]
    numbers: NDArray[np.int8]
    unit: float

    def values(self) -> NDArray[np.float32]:
        """Return float32 [n, 256]."""
        d = self.d.view(np.float16).astype(np.float32) * np.float32(self.unit)
        scale = d[:, None] * self.scales.astype(np.float32)
        return np.repeat(scale, 16, axis=1) * self.numbers.astype(np.float32)


_SEVEN = np.arange(128, dtype=np.uint8)
_EVEN_SIGNS = _SEVEN | (np.unpackbits(_SEVEN[:, None], axis=1).sum(axis=1, dtype=np.uint8) << np.uint8(7))


def _words(blocks: Bytes, begin: int, end: int, dtype: str) -> Words:
    return np.ascontiguousarray(blocks[:, begin:end]).view(dtype).astype(np.uint32)


def _d(blocks: Bytes) -> NDArray[np.uint16]:
    return np.ascontiguousarray(blocks[:, :2]).view("<u2")[:, 0]


def _fields(words: Words, count: int, bits: int) -> Words:
    """Return the *count* lowest fields of *bits* bits of every word, lowest first: [n, words] -> [n, words * count]."""
    shifts = np.arange(count, dtype=np.uint32) * np.uint32(bits)
    return ((words[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)).reshape(len(words), -1)


def _odd(scales: Words) -> NDArray[np.int8]:
    """Return 2 s + 1 for every 16 values, from one s for 16 or 32."""
    return np.repeat(2 * scales + 1, 16 // scales.shape[1], axis=1).astype(np.int8)


def _signed(numbers: NDArray[np.int8], signs: Words) -> NDArray[np.int8]:
    """Return the numbers [n, ...] as [n, 256], negative where bits of signs [n, 32] are set."""
    bits = np.unpackbits(signs.astype(np.uint8), axis=1, bitorder="little").astype(np.int8)
    return numbers.reshape(len(numbers), 256) * (1 - 2 * bits)


def _iq2_xxs(blocks: Bytes) -> GridBlocks:
    words = _words(blocks, 2, 66, "<u4")
    indices, upper = _fields(words[:, ::2], 4, 8), words[:, 1::2]
    signs = _EVEN_SIGNS[_fields(upper, 4, 7)]
    return GridBlocks(_d(blocks), _odd(upper >> 28), _signed(grid("IQ2_XXS")[indices], signs), 1 / 8)


def _iq2_xs(blocks: Bytes) -> GridBlocks:
    words = _words(blocks, 2, 66, "<u2")
    signs = _EVEN_SIGNS[words >> 9]
    scales = _odd(_fields(_words(blocks, 66, 74, "u1"), 2, 4))
    return GridBlocks(_d(blocks), scales, _signed(grid("IQ2_XS")[words & 511], signs), 1 / 8)


def _iq2_s(blocks: Bytes) -> GridBlocks:
    indices = _words(blocks, 2, 34, "u1") | (_fields(_words(blocks, 66, 74, "u1"), 4, 2) << 8)
    scales = _odd(_fields(_words(blocks, 74, 82, "u1"), 2, 4))
    return GridBlocks(_d(blocks), scales, _signed(grid("IQ2_S")[indices], _words(blocks, 34, 66, "u1")), 1 / 8)


def _iq3_xxs(blocks: Bytes) -> GridBlocks:
    upper = _words(blocks, 66, 98, "<u4")
    signs = _EVEN_SIGNS[_fields(upper, 4, 7)]
    return GridBlocks(_d(blocks), _odd(upper >> 28), _signed(grid("IQ3_XXS")[blocks[:, 2:66]], signs), 1 / 4)


def _iq3_s(blocks: Bytes) -> GridBlocks:
    indices = _words(blocks, 2, 66, "u1") | (_fields(_words(blocks, 66, 74, "u1"), 8, 1) << 8)
    scales = _odd(_fields(_words(blocks, 106, 110, "u1"), 2, 4))
    return GridBlocks(_d(blocks), scales, _signed(grid("IQ3_S")[indices], _words(blocks, 74, 106, "u1")), 1)


def _iq1(indices: Words, negative: Words) -> NDArray[np.int8]:
    """Return 8 g + 1 or 8 g - 1 [n, 256] of rows [n, 32] of the grid, the latter where *negative* [n, 32 or 8] is."""
    delta = (1 - 2 * np.repeat(negative, 32 // negative.shape[1], axis=1).astype(np.int8))[:, :, None]
    return (8 * grid("IQ1")[indices] + delta).reshape(len(indices), 256)


def _iq1_s(blocks: Bytes) -> GridBlocks:
    upper = _words(blocks, 34, 50, "<u2")
    indices = _words(blocks, 2, 34, "u1") | (_fields(upper, 4, 3) << 8)
    return GridBlocks(_d(blocks), _odd((upper >> 12) & 7), _iq1(indices, upper >> 15), 1 / 8)


def _iq1_m(blocks: Bytes) -> GridBlocks:
    upper, scales = _fields(_words(blocks, 32, 48, "u1"), 2, 4), _words(blocks, 48, 56, "<u2")
    indices = _words(blocks, 0, 32, "u1") | ((upper & 7) << 8)
    d = ((scales >> 12) << (4 * np.arange(4, dtype=np.uint32))).sum(axis=1).astype(np.uint16)
    return GridBlocks(d, _odd(_fields(scales, 4, 3)), _iq1(indices, upper >> 3), 1 / 8)


GRID_TYPES: dict[QuantType, Callable[[Bytes], GridBlocks]] = {
    QuantType.IQ2_XXS: _iq2_xxs,
    QuantType.IQ2_XS: _iq2_xs,
    QuantType.IQ2_S: _iq2_s,
    QuantType.IQ3_XXS: _iq3_xxs,
    QuantType.IQ3_S: _iq3_s,
    QuantType.IQ1_S: _iq1_s,
    QuantType.IQ1_M: _iq1_m,
}
