"""Rows of a matrix in the order of its file, as float32: each is packed by itself, as the kernels have it, and unpacked.

With NumPy's dequantizers, whose memory no cache holds between two steps, the row of a token took 70-90 us.
"""

from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc

from recode_h cimport format_t, pack_group, recode_group, recoding_t

import numpy as np

from ollama_zmq.kernels.cpu.pool import RECODING_NAMES

cdef extern from "packing/unpack.h" nogil:
    size_t row_nbytes(format_t format, size_t K)
    void unpack_row(format_t format, const void *packed, size_t K, size_t n, float *out)


def rows(
    const unsigned char[:, ::1] file,
    const int32_t[::1] row_ids,
    size_t K,
    int format,
    str recoding="",
    const unsigned char[::1] table=None,
):
    """Return float32 [T, K], rows *row_ids* [T] of *file* [N, bytes of a row].

    Args:
        format: index of the packed format.
        recoding, table: the type of the file and what :mod:`recode` made for it, where it is not that of the format.

    Raises:
        IndexError: a row that is not there.
    """
    cdef Py_ssize_t T = row_ids.shape[0], t
    cdef int number = RECODING_NAMES.index(recoding) if recoding else -1
    cdef const unsigned char *made = &table[0] if recoding else NULL
    cdef const unsigned char *row
    cdef float[:, ::1] out = np.empty((T, K), np.float32)
    cdef void *packed
    for t in range(T):
        if not 0 <= row_ids[t] < file.shape[0]:
            raise IndexError(f"row {row_ids[t]} of {file.shape[0]}")
    packed = malloc(16 * row_nbytes(<format_t>format, K))
    if packed == NULL:
        raise MemoryError("no memory for a row")
    with nogil:
        for t in range(T):
            row = &file[row_ids[t], 0]
            if number < 0:
                pack_group(<format_t>format, row, 1, K, 0, packed)
            else:
                recode_group(<recoding_t>number, made, row, 1, K, 0, packed)
            unpack_row(<format_t>format, packed, K, 0, &out[t, 0])
    free(packed)
    return out.base
