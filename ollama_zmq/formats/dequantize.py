"""Blocks of ggml's tensor types to float32, in plain vectorised NumPy: slow, and meant to be read.

Each function takes blocks uint8 [n_blocks, block_nbytes] and returns float32 [n_blocks, block_size]. The
operations are those of ``dequantize_row_*`` in ``ggml-quants.c``, in float32 and in that order, so the
results are equal bit for bit.

Layouts, d and m being float16; "nibbles" are all low halves of the bytes first, then all high halves:

    Q4_0  d, 16 nibble bytes                     d * (q - 8)
    Q4_1  d, m, 16 nibble bytes                  d * q + m
    Q5_0  d, 4 bytes of fifth bits, 16           d * (q - 16)
    Q5_1  d, m, 4 bytes of fifth bits, 16        d * q + m
    Q8_0  d, 32 int8                             d * q
    Q2_K  16 scales of 4+4 bits, 64, d, m        d * scale * q - m * min           sub-blocks of 16
    Q3_K  32 mask, 64, 12 bytes of scales, d     d * (scale - 32) * (q - 4)        sub-blocks of 16
    Q4_K  d, m, 12 bytes of scales, 128          d * scale * q - m * min           sub-blocks of 32
    Q5_K  d, m, 12, 32 fifth bits, 128           d * scale * q - m * min           sub-blocks of 32
    Q6_K  128 low, 64 high, 16 int8, d           d * scale * (q - 32)              sub-blocks of 16
    IQ4   a table of 16 values in place of q: IQ4_NL as Q4_0, IQ4_XS with 8 scales of 6 bits
    MXFP4 a byte e, 16 nibble bytes              2^(e - 128) * table[q]
    NVFP4 4 bytes of scales, 4 x 8               scale * table[q]                  sub-blocks of 16
    TQ1_0 48 + 4 bytes of 5 or 4 base-3 digits, d                                  d * (q - 1)
    TQ2_0 64, d                                  d * (q - 1)

The scales of NVFP4 are floats of 4 exponent and 3 mantissa bits, halved. IQ1, IQ2 and IQ3 stand in :mod:`grids`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ollama_zmq.errors import ShapeError, UnsupportedOp
from ollama_zmq.formats.grids import GRID_TYPES, GridBlocks
from ollama_zmq.formats.quants import QuantType, tensor_nbytes

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32)
E2M1_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.float32)  # doubled
PIECE_NBYTES = 1 << 22


def dequantize(kind: QuantType, data: bytes | memoryview, shape: Sequence[int]) -> Floats:
    """The numbers in *data* as float32 of *shape*, outermost first. Works in pieces of 4 MB: little memory besides.

    Raises:
        UnsupportedOp: no dequantiser for *kind*.
        ShapeError: *data* has not the length that *kind* and *shape* ask for.
    """
    unpack = _UNPACK.get(kind)
    if unpack is None:
        raise UnsupportedOp(f"tensor type {kind.name} cannot be dequantized by the reference device", type=kind.name)
    raw = np.frombuffer(data, dtype=np.uint8)
    if raw.size != tensor_nbytes(kind, shape):
        raise ShapeError(f"{raw.size} bytes of {kind.name}, but shape {tuple(shape)} has {tensor_nbytes(kind, shape)}")
    blocks = raw.reshape(-1, kind.block_nbytes)
    out = np.empty((len(blocks), kind.block_size), dtype=np.float32)
    step = PIECE_NBYTES // kind.block_nbytes
    for start in range(0, len(blocks), step):
        out[start : start + step] = unpack(blocks[start : start + step])
    return out.reshape(tuple(shape))


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte *at* of each block, [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _fields(values: Bytes, group: int, bits: int) -> Bytes:
    """Unpack *bits*-bit fields, [n, bytes] -> [n, bytes * 8 / bits].

    In every *group* bytes the lowest fields of all bytes come first, then the next ones.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    fields = (values.reshape(len(values), -1, 1, group) >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(len(values), -1)


def _bits(values: Bytes) -> Bytes:
    """Single bits in order, lowest first, [n, bytes] -> [n, 8 * bytes]."""
    return np.unpackbits(values, axis=1, bitorder="little")


def _f32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f4")


def _f16(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_fields(blocks[:, 2:], 16, 4).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _fields(blocks[:, 4:], 16, 4).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    q = _fields(blocks[:, 6:], 16, 4) | (_bits(blocks[:, 2:6]) << np.uint8(4))
    return _half(blocks, 0) * (q.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    q = _fields(blocks[:, 8:], 16, 4) | (_bits(blocks[:, 4:8]) << np.uint8(4))
    return _half(blocks, 0) * q.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _scaled(q: Floats, scale: Floats, minimum: Floats | None = None) -> Floats:
    """``scale * q - minimum`` with one scale per sub-block: q [n, 256], scale and minimum [n, sub-blocks]."""
    q = q.reshape(*scale.shape, -1) * scale[:, :, None]
    if minimum is not None:
        q = q - minimum[:, :, None]
    return q.reshape(len(scale), -1)


def _q2_k(blocks: Bytes) -> Floats:
    scales = blocks[:, :16]
    scale = _half(blocks, 80) * (scales & 0x0F).astype(np.float32)
    minimum = _half(blocks, 82) * (scales >> 4).astype(np.float32)
    return _scaled(_fields(blocks[:, 16:80], 32, 2).astype(np.float32), scale, minimum)


def _q3_k(blocks: Bytes) -> Floats:
    packed = blocks[:, 96:108]
    scales = _fields(packed[:, :8], 8, 4) | (_fields(packed[:, 8:], 4, 2) << np.uint8(4))
    scale = _half(blocks, 108) * (scales.astype(np.float32) - 32)
    q = _fields(blocks[:, 32:96], 32, 2) | (_fields(blocks[:, :32], 32, 1) << np.uint8(2))
    return _scaled(q.astype(np.float32) - 4, scale)


def _k_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """Eight 6-bit scales and eight 6-bit minimums of Q4_K and Q5_K, from 12 bytes [n, 12]."""
    a, b, c = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([a & 0x3F, (c & 0x0F) | ((a >> 2) & 0x30)], axis=1)
    minimum = np.concatenate([b & 0x3F, (c >> 4) | ((b >> 2) & 0x30)], axis=1)
    return scale.astype(np.float32), minimum.astype(np.float32)


def _q4_k(blocks: Bytes) -> Floats:
    scale, minimum = _k_scales(blocks[:, 4:16])
    q = _fields(blocks[:, 16:], 32, 4).astype(np.float32)
    return _scaled(q, _half(blocks, 0) * scale, _half(blocks, 2) * minimum)


def _q5_k(blocks: Bytes) -> Floats:
    scale, minimum = _k_scales(blocks[:, 4:16])
    q = _fields(blocks[:, 48:], 32, 4) | (_fields(blocks[:, 16:48], 32, 1) << np.uint8(4))
    return _scaled(q.astype(np.float32), _half(blocks, 0) * scale, _half(blocks, 2) * minimum)


def _q6_k(blocks: Bytes) -> Floats:
    q = _fields(blocks[:, :128], 64, 4) | (_fields(blocks[:, 128:192], 32, 2) << np.uint8(4))
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return _scaled(q.astype(np.float32) - 32, scale)


def _iq4_nl(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * IQ4_VALUES[_fields(blocks[:, 2:], 16, 4)]


def _iq4_xs(blocks: Bytes) -> Floats:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    low = np.stack([blocks[:, 4:8] & 0x0F, blocks[:, 4:8] >> 4], axis=2).reshape(len(blocks), 8)
    scales = low | ((high & 3).astype(np.uint8) << np.uint8(4))
    scale = _half(blocks, 0) * (scales.astype(np.float32) - 32)
    return _scaled(IQ4_VALUES[_fields(blocks[:, 8:], 16, 4)], scale)


def _mxfp4(blocks: Bytes) -> Floats:
    e = blocks[:, :1].astype(np.int32)
    with np.errstate(over="ignore"):
        return np.ldexp(E2M1_VALUES[_fields(blocks[:, 1:], 16, 4)], e - 128)


def _nvfp4(blocks: Bytes) -> Floats:
    scales = blocks[:, :4]
    exponent, mantissa = (scales >> 3 & 15).astype(np.int32), (scales & 7).astype(np.float32)
    scale = np.ldexp(np.where(exponent > 0, mantissa + 8, mantissa), np.maximum(exponent, 1) - 11)
    scale[scales == 0x7F] = 0
    return _scaled(E2M1_VALUES[_fields(blocks[:, 4:], 8, 4)], scale.astype(np.float32))


def _digits(values: Bytes, count: int) -> Bytes:
    """The first *count* base-3 digits of bytes as fractions of 256, [n, bytes] -> [n, count * bytes]."""
    shifted = values[:, None, :] * (3 ** np.arange(count, dtype=np.uint8))[:, None]
    return ((shifted.astype(np.uint16) * 3) >> 8).astype(np.uint8).reshape(len(values), -1)


def ternary(kind: QuantType, blocks: Bytes) -> Bytes:
    """The digits 0, 1 and 2 of blocks of TQ1_0 or TQ2_0, [n, 256]."""
    if kind is QuantType.TQ2_0:
        return _fields(blocks[:, :64], 32, 2)
    parts = _digits(blocks[:, :32], 5), _digits(blocks[:, 32:48], 5), _digits(blocks[:, 48:52], 4)
    return np.concatenate(parts, axis=1)


def _ternary(kind: QuantType) -> Callable[[Bytes], Floats]:
    return lambda blocks: _half(blocks, kind.block_nbytes - 2) * (ternary(kind, blocks).astype(np.float32) - 1)


def _from_grid(parts: Callable[[Bytes], GridBlocks]) -> Callable[[Bytes], Floats]:
    return lambda blocks: parts(blocks).values()


_UNPACK: dict[QuantType, Callable[[Bytes], Floats]] = {
    QuantType.F32: _f32,
    QuantType.F16: _f16,
    QuantType.BF16: _bf16,
    QuantType.Q4_0: _q4_0,
    QuantType.Q4_1: _q4_1,
    QuantType.Q5_0: _q5_0,
    QuantType.Q5_1: _q5_1,
    QuantType.Q8_0: _q8_0,
    QuantType.Q2_K: _q2_k,
    QuantType.Q3_K: _q3_k,
    QuantType.Q4_K: _q4_k,
    QuantType.Q5_K: _q5_k,
    QuantType.Q6_K: _q6_k,
    QuantType.IQ4_NL: _iq4_nl,
    QuantType.IQ4_XS: _iq4_xs,
    QuantType.MXFP4: _mxfp4,
    QuantType.NVFP4: _nvfp4,
    QuantType.TQ1_0: _ternary(QuantType.TQ1_0),
    QuantType.TQ2_0: _ternary(QuantType.TQ2_0),
    **{kind: _from_grid(parts) for kind, parts in GRID_TYPES.items()},
}
SUPPORTED = frozenset(_UNPACK)
