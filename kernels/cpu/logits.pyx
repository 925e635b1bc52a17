"""What a sampler asks of all V logits of a row, in compiled code: the largest of them, and their sum as exponentials.

Every instruction set gives the same bits; the fastest is taken where a caller names none.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t

import numpy as np

from ollama_zmq.kernels.cpu import simd

cdef extern from "rows/top.h" nogil:
    ctypedef struct kernel_table "struct kernels":
        double (*exp_sum)(const float *logits, size_t V, float peak, float scale) noexcept nogil
    long top(const kernel_table *kernels, const float *logits, size_t V, size_t k, int64_t *ids)

FASTEST = simd.kernels_named(simd.isa_names()[0])


def largest(const float[::1] logits, Py_ssize_t k, kernels=FASTEST):
    """Return the ids, int64 [k], of the *k* largest of float32 [V], from the largest down; the lowest id among equals.

    All of them where *k* is 0, less, or more than V. A NaN counts as the largest; where there is one, the first stands alone.
    """
    cdef size_t V = logits.shape[0], wanted = k if 0 < k < logits.shape[0] else logits.shape[0]
    cdef const kernel_table *table = <const kernel_table *>PyCapsule_GetPointer(kernels, "kernels")
    cdef int64_t[::1] ids = np.empty(wanted, np.int64)
    cdef long count
    if V == 0:
        return ids.base
    with nogil:
        count = top(table, &logits[0], V, wanted, &ids[0])
    if count < 0:
        raise MemoryError(f"no memory to sort {V} logits")
    return ids.base[:count]


def exp_sum(const float[::1] logits, float peak, float scale=1.0, kernels=FASTEST):
    """Return the sum of exp((logit - *peak*) * *scale*) over float32 [V], where no logit is above *peak* and none is NaN."""
    cdef size_t V = logits.shape[0]
    cdef const kernel_table *table = <const kernel_table *>PyCapsule_GetPointer(kernels, "kernels")
    cdef double total
    if V == 0:
        return 0.0
    with nogil:
        total = table.exp_sum(&logits[0], V, peak, scale)
    return total
