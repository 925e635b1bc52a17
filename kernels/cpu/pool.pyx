"""Threads of the CPU device, and the work that they do at load: thin functions over ``pool.h``, ``pack.h``, ``recode.h``."""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uintptr_t

from recode_h cimport format_t, groups_of, pack_group, recode_group, recoding_t

import threading

import numpy as np

cdef extern from "runtime/pool.h" nogil:
    ctypedef struct c_pool "struct pool":
        int threads
    ctypedef void pool_work(void *context, int thread) noexcept nogil
    c_pool *pool_new(int threads, const int *cpus)
    void pool_run(c_pool *pool, pool_work *work, void *context)
    void pool_free(c_pool *pool)
    long pool_take(c_pool *pool, int thread, long count, long chunk, long *first)

RECODING_NAMES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "NVFP4")


cdef struct packing:
    c_pool *pool
    format_t format
    const unsigned char *file
    size_t N
    size_t K
    void *packed
    int recoding                    # number of a recoding, or -1
    const unsigned char *table


cdef void pack_groups(void *context, int thread) noexcept nogil:
    cdef packing *job = <packing *>context
    cdef long first, n, g
    while True:
        n = pool_take(job.pool, thread, <long>groups_of(job.N), 4, &first)
        if n == 0:
            return
        for g in range(first, first + n):
            if job.recoding < 0:
                pack_group(job.format, job.file, job.N, job.K, <size_t>g, job.packed)
            else:
                recode_group(<recoding_t>job.recoding, job.table, job.file, job.N, job.K, <size_t>g, job.packed)


cdef struct reading:
    c_pool *pool
    const unsigned long *words
    size_t count
    unsigned long sum


cdef void read_share(void *context, int thread) noexcept nogil:
    """A line of 8 words at a time: a word at a time reads 28 or 33 GB/s on one Zen 4 core, by where the loop happens to lie."""
    cdef reading *job = <reading *>context
    cdef size_t lines = job.count // 8, i, lane
    cdef const unsigned long *words
    cdef unsigned long[8] sums = [0, 0, 0, 0, 0, 0, 0, 0]
    for i in range(lines * thread // job.pool.threads, lines * (thread + 1) // job.pool.threads):
        words = job.words + 8 * i
        for lane in range(8):
            sums[lane] += words[lane]
    for lane in range(8):
        job.sum += sums[lane]       # only so that the loop stays; which thread adds last does not matter


cdef class Pool:
    """Threads that work together; the caller is one of them. One caller at a time holds ``lock``.

    Args:
        cpus: where each thread is pinned, or empty; the caller itself never is.
    """

    cdef c_pool *pool
    cdef readonly object lock
    cdef object __weakref__

    def __cinit__(self, int threads, cpus=()):
        cdef int[::1] places = np.array(cpus if len(cpus) else [0], np.intc)
        self.lock = threading.Lock()
        self.pool = pool_new(threads, &places[0] if len(cpus) else NULL)
        if self.pool == NULL:
            raise MemoryError(f"the system has no {threads} threads")

    def __dealloc__(self):
        self.close()

    @property
    def handle(self):
        """A capsule of the threads, for programs that run on them; they keep this object as long."""
        return PyCapsule_New(self.pool, "pool", NULL)

    def close(self):
        """End the threads."""
        cdef c_pool *pool = self.pool
        self.pool = NULL
        with nogil:
            pool_free(pool)

    def pack(self, int format, const unsigned char[::1] file, size_t N, size_t K, uintptr_t packed):
        """Pack a weight [N, K] from the order of a file to 16-row groups at *packed*.

        Raises:
            ValueError: the pool is closed.
        """
        self._pack(packing(self.pool, <format_t>format, &file[0], N, K, <void *>packed, -1, NULL))

    def recode(self, str name, const unsigned char[::1] table, const unsigned char[::1] file, size_t N, size_t K, uintptr_t packed):
        """Pack a weight [N, K] of a type without kernels, called *name*; *table* is what :mod:`recode` made for it.

        Raises:
            ValueError: the pool is closed.
        """
        cdef int number = RECODING_NAMES.index(name)
        self._pack(packing(self.pool, <format_t>0, &file[0], N, K, <void *>packed, number, &table[0]))

    cdef _pack(self, packing job):
        if self.pool == NULL:
            raise ValueError("a pool that is closed")
        with self.lock:
            with nogil:
                pool_run(self.pool, pack_groups, &job)

    def read(self, const unsigned long[::1] words):
        """Read *words* once, in order, each thread a share: what the machine's reads are measured with."""
        cdef reading job = reading(self.pool, &words[0], words.shape[0], 0)
        with self.lock:
            with nogil:
                pool_run(self.pool, read_share, &job)
