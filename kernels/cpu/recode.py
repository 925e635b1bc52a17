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

``recode.h`` does it, 16 rows at a time on their way into a group, with the tables that are made here: the rows of a
grid as indices into the numbers of ``tables.h``, or the float16 of every scale and nibble.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ollama_zmq.formats.dequantize import dequantize
from ollama_zmq.formats.grid_tables import grid
from ollama_zmq.formats.quants import QuantType

Bytes = NDArray[np.uint8]

GRID = -1  # stands for a type id where the packed format is in no file
GRID_NBYTES = 147
MAGNITUDES = {  # of the tables in tables.h
    "IQ2": (8, 25, 43),
    "IQ3_XXS": (4, 12, 20, 28, 36, 44, 52, 62),
    "IQ3_S": (1, 3, 5, 7, 9, 11, 13, 15),
    "IQ1": (1, 7, 9),
}


@dataclass(frozen=True)
class Recoding:
    """How a type is brought to another.

    Attributes:
        kind: the type, known to the kernels by its name.
        target: type id of the packed format.
    """

    kind: QuantType
    target: int
    make_table: Callable[[str], Bytes]

    @cached_property
    def table(self) -> Bytes:
        """What the kernels look up, flat."""
        return np.ascontiguousarray(self.make_table(self.kind.name)).reshape(-1)


def _indices(numbers: NDArray[np.int8], magnitudes: tuple[int, ...]) -> Bytes:
    """Return where *numbers* stand in a table of both signs."""
    values = np.array(sorted([*magnitudes, *(-m for m in magnitudes)]))
    return np.searchsorted(values, numbers).astype(np.uint8)


def _grid(name: str) -> Bytes:
    key = name if name.startswith("IQ3") else name[:3]
    return _indices(grid(name), MAGNITUDES[key])


def _grid_of_iq1(_: str) -> Bytes:
    rows = 8 * grid("IQ1")
    return _indices(np.concatenate([rows + np.int8(1), rows - np.int8(1)]), MAGNITUDES["IQ1"])


def _nothing(_: str) -> Bytes:
    return np.zeros(1, np.uint8)


def _halves_of_nvfp4(_: str) -> Bytes:
    """Return float16 [256 scales, 16 nibbles] as bytes."""
    blocks = np.zeros((256, QuantType.NVFP4.block_nbytes), np.uint8)
    blocks[:, :4] = np.arange(256)[:, None]
    blocks[:, 4:12] = np.arange(8) | np.arange(8, 16) << 4
    values = dequantize(QuantType.NVFP4, blocks.tobytes(), (256, 64))[:, :16]
    return values.astype("<f2").view(np.uint8)


RECODED = {
    kind.id: Recoding(kind, target, make_table)
    for kind, target, make_table in (
        (QuantType.IQ1_S, GRID, _grid_of_iq1),
        (QuantType.IQ1_M, GRID, _grid_of_iq1),
        (QuantType.IQ2_XXS, GRID, _grid),
        (QuantType.IQ2_XS, GRID, _grid),
        (QuantType.IQ2_S, GRID, _grid),
        (QuantType.IQ3_XXS, GRID, _grid),
        (QuantType.IQ3_S, GRID, _grid),
        (QuantType.TQ1_0, QuantType.Q2_K.id, _nothing),
        (QuantType.TQ2_0, QuantType.Q2_K.id, _nothing),
        (QuantType.NVFP4, QuantType.F16.id, _halves_of_nvfp4),
    )
}
