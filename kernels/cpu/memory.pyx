"""Memory of the CPU device: a thin class over ``arena.h``. Addresses are plain integers; they never come from a peer."""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport uintptr_t

import numpy as np

cdef extern from "runtime/arena.h" nogil:
    ctypedef struct arena "struct arena":
        char *memory
    int arena_open(arena *a, size_t nbytes)
    void arena_forget(void *part, size_t nbytes)
    void arena_close(arena *a)


cdef class Memory:
    """Zeroed memory on huge pages. ``address`` is a multiple of 64; 0 once closed.

    Arrays over it may outlive ``close``: all but the part that arrays were made of goes back to the system at once, the
    rest with the last of them.
    """

    cdef arena arena
    cdef readonly size_t nbytes
    cdef size_t arrays              # that exist
    cdef size_t begin, end          # of what arrays were made of
    cdef bint closed

    def __cinit__(self, size_t nbytes):
        if arena_open(&self.arena, nbytes) != 0:
            raise MemoryError(f"the system has no {nbytes} bytes")
        self.nbytes = self.begin = nbytes

    def __dealloc__(self):
        arena_close(&self.arena)

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.closed:
            raise BufferError("memory that is closed")
        PyBuffer_FillInfo(view, self, self.arena.memory, self.nbytes, 0, flags)
        self.arrays += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.arrays -= 1
        if self.closed and not self.arrays:
            arena_close(&self.arena)

    @property
    def address(self):
        return 0 if self.closed else <uintptr_t>self.arena.memory

    def forget(self, size_t offset, size_t nbytes):
        """Give a part that is not used any more back to the system."""
        arena_forget(self.arena.memory + offset, nbytes)

    def close(self):
        if self.closed:
            return
        self.closed = True
        if self.arrays:
            self.forget(0, self.begin)
            self.forget(self.end, self.nbytes - self.end)
        else:
            arena_close(&self.arena)

    def floats(self, size_t offset, size_t count):
        """Return float32 [count] over this memory. It keeps its values after ``close``."""
        if not count:
            return np.empty(0, np.float32)
        self.begin, self.end = min(self.begin, offset), max(self.end, offset + count * sizeof(float))
        return np.frombuffer(self, np.float32, count, offset)

    def bytes(self):
        """Return uint8 [nbytes] over this memory."""
        self.begin, self.end = 0, self.nbytes
        return np.frombuffer(self, np.uint8)
