"""Tensor types without kernels of their own: at load they are brought, value by value, to a format that has some.

    type                      bits per weight in the file    becomes    bits in memory    error
    IQ1_S, IQ1_M              1.56, 1.75                     GRID       4.59              none
    IQ2_XXS, IQ2_XS, IQ2_S    2.06, 2.31, 2.56               GRID       4.59              none
    IQ3_XXS, IQ3_S            3.06, 3.44                     GRID       4.59              none
    TQ1_0, TQ2_0              1.69, 2.06                     Q2_K       2.63              none
    NVFP4                     4.5                            F16        16                none

GRID (``formats.h``) keeps one scale for every 16 values and 4 bits for each: a grid with both signs holds no more than
16 different numbers. A digit of TQ becomes d q - d, which Q2_K says with scale and minimum 1. A value of NVFP4 has at
most 7 significant bits between 2^-10 and 2688, so float16 holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ollama_zmq.formats.dequantize import ternary
from ollama_zmq.formats.grids import GRID_TYPES
from ollama_zmq.formats.quants import QuantType, dequantize

Bytes = NDArray[np.uint8]

GRID = -1  # stands for a type id where the packed format is in no file
GRID_NBYTES = 147
MAGNITUDES = (  # of the tables in tables.h
    (8, 25, 43),
    (4, 12, 20, 28, 36, 44, 52, 62),
    (1, 3, 5, 7, 9, 11, 13, 15),
    (1, 7, 9),
)
TABLE_OF = {
    QuantType.IQ2_XXS: 0,
    QuantType.IQ2_XS: 0,
    QuantType.IQ2_S: 0,
    QuantType.IQ3_XXS: 1,
    QuantType.IQ3_S: 2,
    QuantType.IQ1_S: 3,
    QuantType.IQ1_M: 3,
}


@dataclass(frozen=True, slots=True)
class Recoding:
    """How a type is brought to another.

    Attributes:
        target: type id of the packed format.
        blocks: uint8 [n, bytes per block] -> the same values as blocks of *target*, uint8.
    """

    target: int
    blocks: Callable[[Bytes], Bytes]


def _index_of_number(table: int) -> Bytes:
    """Return the index in a table of every number of it: uint8 [256], at number mod 256."""
    magnitudes = np.array(MAGNITUDES[table])
    numbers = np.concatenate([-magnitudes[::-1], magnitudes])
    indices = np.zeros(256, np.uint8)
    indices[numbers & 255] = np.arange(len(numbers))
    return indices


_INDICES = tuple(_index_of_number(table) for table in range(len(MAGNITUDES)))


def _to_grid(kind: QuantType, blocks: Bytes) -> Bytes:
    """Return ``struct file_grid``: d, table, 16 scales, nibbles as in Q4_K."""
    parts = GRID_TYPES[kind](blocks)
    nibbles = _INDICES[TABLE_OF[kind]][parts.numbers.view(np.uint8)].reshape(-1, 4, 2, 32)
    out = np.empty((len(blocks), GRID_NBYTES), np.uint8)
    out[:, :2] = parts.d[:, None].view(np.uint8)
    out[:, 2] = TABLE_OF[kind]
    out[:, 3:19] = parts.scales.view(np.uint8)
    out[:, 19:] = (nibbles[:, :, 0] | (nibbles[:, :, 1] << np.uint8(4))).reshape(len(blocks), -1)
    return out


def _ternary_to_q2_k(kind: QuantType, blocks: Bytes) -> Bytes:
    """Return blocks of Q2_K: 16 scales and minimums, which are all 1, digits, d and again d."""
    digits = ternary(kind, blocks).reshape(-1, 2, 4, 32)
    out = np.empty((len(blocks), QuantType.Q2_K.block_nbytes), np.uint8)
    out[:, :16] = 0x11
    out[:, 16:80] = (digits << np.arange(0, 8, 2, dtype=np.uint8)[:, None]).sum(axis=2, dtype=np.uint8).reshape(-1, 64)
    out[:, 80:82] = out[:, 82:84] = blocks[:, -2:]
    return out


def _to_f16(kind: QuantType, blocks: Bytes) -> Bytes:
    return (
        dequantize(kind, blocks.tobytes(), (blocks.size // kind.block_nbytes * kind.block_size,))
        .astype("<f2")
        .view(np.uint8)
    )


RECODED = {kind.id: Recoding(GRID, partial(_to_grid, kind)) for kind in GRID_TYPES}
RECODED |= {
    kind.id: Recoding(QuantType.Q2_K.id, partial(_ternary_to_q2_k, kind)) for kind in (QuantType.TQ1_0, QuantType.TQ2_0)
}
RECODED[QuantType.NVFP4.id] = Recoding(QuantType.F16.id, partial(_to_f16, QuantType.NVFP4))
