"""The kernels of every instruction set, compiled once, and what is known of them.

This module holds the machine code of ``isa_*.c`` and hands out its tables; it is apart from :mod:`program` so that
a change there compiles in seconds.
"""

from cpython.pycapsule cimport PyCapsule_New

cdef extern from "isa.h" nogil:
    ctypedef struct kernel_table "struct kernels":
        const char *name
        size_t panel_columns
    const kernel_table *isa_at(int i)

cdef extern from "formats/activations.h" nogil:
    cdef enum:
        FORMATS
    ctypedef int activation_kind "enum activation"
    ctypedef struct format_record "struct format_info":
        int ggml_id
        int block_size
        int block_nbytes
        int x
    const format_record format_infos[]
    size_t activation_size "activation_nbytes"(activation_kind kind, size_t K)


def isa_names():
    """Return the names of the instruction sets that this CPU can run kernels for, fastest first."""
    names = []
    while isa_at(len(names)) != NULL:
        names.append(isa_at(len(names)).name.decode())
    return tuple(names)


def kernels_named(str name):
    """Return a capsule of the table called *name*, one of :func:`isa_names`."""
    return PyCapsule_New(<void *>isa_at(isa_names().index(name)), "kernels", NULL)


def formats():
    """Return ggml type id -> (index, block size, bytes per block, kind of activations) of every packed format."""
    return {
        format_infos[i].ggml_id: (i, format_infos[i].block_size, format_infos[i].block_nbytes, format_infos[i].x)
        for i in range(FORMATS)
    }


def activation_nbytes(int kind, size_t K):
    """Return the bytes that one token's K activations take, packed as *kind*."""
    return activation_size(<activation_kind>kind, K)
