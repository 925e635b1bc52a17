"""``recode.h``, and ``pack.h`` in it, as Cython sees them."""

cdef extern from "packing/recode.h" nogil:
    ctypedef int format_t "enum format"
    ctypedef int recoding_t "enum recoding"
    void recode_group(
        recoding_t kind, const unsigned char *table, const unsigned char *file, size_t N, size_t K, size_t g, void *packed
    )
    void pack_group(format_t format, const unsigned char *file, size_t N, size_t K, size_t g, void *packed)
    size_t groups_of(size_t N)
