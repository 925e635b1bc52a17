"""Every tensor type of ggml: its number in GGUF files, its block and what Ollama calls a mix of them.

A row of K elements is K / block_size quantization blocks of block_nbytes bytes, one after another; rows follow each
other without padding. F32 and its like have blocks of one element. The numbers 4, 5, 31-33 and 36-38 were
types once and are refused by name where a file still carries them.

Source: ``ggml.h`` (enum ggml_type, enum ggml_ftype) and ``ggml-common.h`` (block_q4_0 and the rest).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from math import prod

from ollama_zmq.errors import ModelFileError, ShapeError
from ollama_zmq.units import human_number


class QuantType(Enum):
    """One tensor type. ``QuantType["Q4_0"]`` finds it by name, :func:`type_of_id` by its number in a file.

    Attributes:
        id: number in GGUF files.
        block_size: elements per block.
        block_nbytes: bytes per block.
    """

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    Q4_0 = (2, 32, 18)
    Q4_1 = (3, 32, 20)
    Q5_0 = (6, 32, 22)
    Q5_1 = (7, 32, 24)
    Q8_0 = (8, 32, 34)
    Q8_1 = (9, 32, 40)
    Q2_K = (10, 256, 84)
    Q3_K = (11, 256, 110)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)
    Q8_K = (15, 256, 292)
    IQ2_XXS = (16, 256, 66)
    IQ2_XS = (17, 256, 74)
    IQ3_XXS = (18, 256, 98)
    IQ1_S = (19, 256, 50)
    IQ4_NL = (20, 32, 18)
    IQ3_S = (21, 256, 110)
    IQ2_S = (22, 256, 82)
    IQ4_XS = (23, 256, 136)
    I8 = (24, 1, 1)
    I16 = (25, 1, 2)
    I32 = (26, 1, 4)
    I64 = (27, 1, 8)
    F64 = (28, 1, 8)
    IQ1_M = (29, 256, 56)
    BF16 = (30, 1, 2)
    TQ1_0 = (34, 256, 54)
    TQ2_0 = (35, 256, 66)
    MXFP4 = (39, 32, 17)
    NVFP4 = (40, 64, 36)
    Q1_0 = (41, 128, 18)

    def __init__(self, number: int, block_size: int, block_nbytes: int) -> None:
        self.id = number
        self.block_size = block_size
        self.block_nbytes = block_nbytes

    def __repr__(self) -> str:
        return f"QuantType.{self.name}"


_BY_ID = {kind.id: kind for kind in QuantType}
_REMOVED = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}
_REMOVED |= {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}

_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0",
}  # fmt: skip


def type_of_id(number: int) -> QuantType:
    """The type that a GGUF file calls *number*.

    Raises:
        ModelFileError: there is no such type, or not any more.
    """
    if number in _BY_ID:
        return _BY_ID[number]
    if number in _REMOVED:
        raise ModelFileError(
            f"tensor type {number} ({_REMOVED[number]}) was removed from GGUF: convert the model again"
        )
    raise ModelFileError(f"unknown tensor type {number}: this version knows {min(_BY_ID)} to {max(_BY_ID)}")


def row_nbytes(kind: QuantType, n: int) -> int:
    """Bytes of a row of *n* elements.

    Raises:
        ShapeError: *n* is not a multiple of the block size.
    """
    blocks, rest = divmod(n, kind.block_size)
    if rest:
        raise ShapeError(f"row of {n} elements is not a multiple of {kind.name}'s block of {kind.block_size}")
    return blocks * kind.block_nbytes


def tensor_nbytes(kind: QuantType, shape: Sequence[int]) -> int:
    """Bytes of a tensor of *shape*, outermost first. Raises ShapeError as :func:`row_nbytes` does."""
    return prod(shape[:-1]) * row_nbytes(kind, shape[-1] if shape else 1)


def file_type_name(file_type: int) -> str:
    """``general.file_type`` as Ollama's ``quantization_level``: 15 is ``Q4_K_M``; ``unknown`` if there is no such."""
    return _FILE_TYPES.get(file_type, "unknown")


def parameter_size(n_parameters: int) -> str:
    """``134515008`` as Ollama's ``parameter_size``: ``134.52M``."""
    return human_number(n_parameters)
