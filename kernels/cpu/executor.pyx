"""Threads, memory and compiled programs of the CPU device: thin classes over ``pool.h``, ``arena.h`` and ``program.h``.

Addresses are plain integers here and only here; they come from :class:`Memory`, never from a peer. Shapes of
programs have been checked before they come here; what each run brings is checked where it is taken, in one call.
"""

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBuffer_FillInfo, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport INT32_MAX, int32_t, uintptr_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy

import threading

import numpy as np

cdef extern from "arena.h" nogil:
    ctypedef struct arena "struct arena":
        char *memory
    int arena_open(arena *a, size_t nbytes)
    void arena_forget(void *part, size_t nbytes)
    void arena_close(arena *a)

cdef extern from "program.h" nogil:
    ctypedef struct kernel_table "struct kernels":
        pass
    ctypedef int format_t "enum format"
    ctypedef int activation_t "enum activation"
    ctypedef int row_kind_t "enum row_kind"
    ctypedef int step_kind_t "enum step_kind"
    cdef enum:
        COPY, EMBED, TAKE_ROWS, ADD, ADD_BIAS, RMS_NORM, LAYER_NORM, SILU_MUL, ANGLES, ROPE, STORE_KV, PACK
        ROUTE, PACK_SLOTS, EXPERT_SUM
        ROWS_STEP, LINEAR_STEP, ATTENTION_STEP, GATHER_STEP, EXPERTS_STEP
        PAGE_SLOTS
    ctypedef struct c_pool "struct pool":
        int threads
    ctypedef void pool_work(void *context, int thread) noexcept nogil
    c_pool *pool_new(int threads, const int *cpus)
    void pool_run(c_pool *pool, pool_work *work, void *context)
    void pool_free(c_pool *pool)
    long pool_take(c_pool *pool, int thread, long count, long chunk, long *first)
    ctypedef int recoding_t "enum recoding"
    void recode_group(
        recoding_t kind, const unsigned char *table, const unsigned char *file, size_t N, size_t K, size_t g, void *packed
    )
    void pack_group(format_t format, const unsigned char *file, size_t N, size_t K, size_t g, void *packed)
    size_t groups_of(size_t N)
    ctypedef int kv_type_t "enum kv_type"
    ctypedef struct kv_head "struct kv_head":
        kv_type_t type
        size_t keys
        size_t values
    cdef enum:
        KV_F16, KV_Q8_0
        C_RUN_PAGES "RUN_PAGES"
    size_t attention_floats "attention_scratch"(const kv_head *head)
    size_t c_record_floats "record_floats"(const kv_head *head)
    size_t c_page_nbytes "page_nbytes"(const kv_head *head)
    size_t slots_size "slots_nbytes"(size_t T, size_t n_experts, size_t n_used)
    ctypedef struct row_op "struct row_op":
        row_kind_t kind
        const float *a
        const float *b
        void *out
        size_t width
        const void *weight
        format_t format
        activation_t activation
        size_t n_heads
        size_t head_dim
        kv_head head
        int halves
        float eps
        size_t n_experts
        size_t n_used
        void *slots
        int shared
    ctypedef struct linear_part "struct linear_part":
        const void *weight
        const void *x
        float *out
        format_t format
        size_t N
        size_t K
        size_t groups
    ctypedef struct expert_part "struct expert_part":
        const void *weight
        const void *x
        float *out
        format_t format
        size_t N
        size_t K
        size_t groups
        void *slots
        size_t n_experts
        size_t n_used
    ctypedef struct attention_op "struct attention_op":
        const float *q
        const float *sinks
        float *out
        const char *cache
        kv_head head
        size_t n_heads
        size_t n_kv_heads
        size_t window
        float scale
        float softcap
    ctypedef struct gather_op "struct gather_op":
        const float *routing
        void *slots
        size_t n_experts
        size_t n_used
    ctypedef struct c_step "struct step":
        step_kind_t kind
        int counts_rows
        int count
        row_op *rows
        linear_part *parts
        expert_part *experts
        attention_op attention
        gather_op gather
    ctypedef struct c_pass "struct pass":
        size_t T
        size_t R
        size_t B
        const char *input
        const int32_t *rows
        const int32_t *positions
        const int32_t *pages
        const int32_t *first_token
        const int32_t *const *tables
    ctypedef struct c_program "struct program":
        const kernel_table *kernels
        c_pool *pool
        c_step *steps
        int count
        float *scratch
        size_t thread_scratch
        float *records
        size_t record_floats
        c_pass given "pass"
    void program_run(c_program *p)

RECODING_NAMES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "NVFP4")
ROW_KINDS = {
    "copy": COPY, "embed": EMBED, "take_rows": TAKE_ROWS, "add": ADD, "add_bias": ADD_BIAS, "rms_norm": RMS_NORM, "layer_norm": LAYER_NORM,
    "silu_mul": SILU_MUL, "angles": ANGLES, "rope": ROPE, "store_kv": STORE_KV, "pack": PACK,
    "route": ROUTE, "pack_slots": PACK_SLOTS, "expert_sum": EXPERT_SUM,
}


RUN_PAGES = C_RUN_PAGES
KV_TYPES = {"f16": KV_F16, "q8_0": KV_Q8_0}


cdef kv_head head_of(cache):
    """Return how a kv head of *cache*, a CacheSpec, is kept."""
    return kv_head(<kv_type_t><int>KV_TYPES[cache.type], cache.head_dim, cache.value_dim)


def attention_scratch_nbytes(cache):
    """Return the bytes that each thread works in during attention to *cache*."""
    cdef kv_head head = head_of(cache)
    return sizeof(float) * attention_floats(&head)


def record_nbytes(cache):
    """Return the bytes of what one query head has seen of a run of slots."""
    cdef kv_head head = head_of(cache)
    return sizeof(float) * c_record_floats(&head)


def page_nbytes(cache):
    """Return the bytes of one page of one kv head, keys and values."""
    cdef kv_head head = head_of(cache)
    return c_page_nbytes(&head)


def slots_nbytes(size_t T, size_t n_experts, size_t n_used):
    """Return the bytes that the slots of T rows take, sorted by expert."""
    return slots_size(T, n_experts, n_used)


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

    def read(self, Memory memory):
        """Read all of *memory* once, in order, each thread a share: what the machine's reads are measured with."""
        cdef reading job = reading(self.pool, <const unsigned long *>memory.arena.memory, memory.nbytes // sizeof(long), 0)
        with self.lock:
            with nogil:
                pool_run(self.pool, read_share, &job)


cdef class Program:
    """Steps with all addresses resolved. Built once by ``add_*``, run many times.

    Args:
        kernels: a capsule of :func:`simd.kernels_named`.
        scratch: address of attention's scratch, *thread_scratch* floats for each thread.
        records: address of *record_floats* floats for the records of attention's runs.
        max_tokens: the most tokens, and sequences, of one run; max_rows: the most rows it may ask for.
        kv_pages: pages in each cache; -1 for a program without caches.
        width: D of an input float32 [T, D]; 0 for token ids int32 [T], of a *vocabulary* that is 0 if any will do.
    """

    cdef c_program program
    cdef Pool pool
    cdef int capacity
    cdef int32_t *numbers           # positions, pages, rows [max_tokens] each, first_token [max_tokens + 1]
    cdef const int32_t **tables     # [max_tokens], each somewhere in table_numbers
    cdef int32_t *table_numbers
    cdef size_t table_room, max_tokens, max_rows, width
    cdef long kv_pages
    cdef int vocabulary

    def __cinit__(
        self,
        kernels,
        Pool pool,
        int n_steps,
        *,
        uintptr_t scratch,
        size_t thread_scratch,
        uintptr_t records,
        size_t record_floats,
        size_t max_tokens,
        size_t max_rows,
        long kv_pages,
        size_t width,
        int vocabulary,
    ):
        self.pool = pool
        self.capacity = n_steps
        self.max_tokens, self.max_rows, self.kv_pages = max_tokens, max_rows, kv_pages
        self.width, self.vocabulary = width, vocabulary
        self.program.kernels = <const kernel_table *>PyCapsule_GetPointer(kernels, "kernels")
        self.program.pool = pool.pool
        self.program.scratch = <float *>scratch
        self.program.thread_scratch = thread_scratch
        self.program.records = <float *>records
        self.program.record_floats = record_floats
        self.program.steps = <c_step *>calloc(n_steps + 1, sizeof(c_step))
        self.numbers = <int32_t *>calloc(4 * max_tokens + 1, sizeof(int32_t))
        self.tables = <const int32_t **>calloc(max_tokens + 1, sizeof(int32_t *))
        if self.program.steps == NULL or self.numbers == NULL or self.tables == NULL:
            raise MemoryError("no memory for a program")

    def __dealloc__(self):
        cdef int i
        if self.program.steps != NULL:
            for i in range(self.program.count):
                free(self.program.steps[i].rows)
                free(self.program.steps[i].parts)
                free(self.program.steps[i].experts)
        free(self.program.steps)
        free(self.numbers)
        free(<void *>self.tables)
        free(self.table_numbers)

    cdef c_step *_new_step(self, step_kind_t kind, str symbol, int count) except NULL:
        if self.program.count == self.capacity:
            raise IndexError("more steps than planned")
        cdef c_step *step = &self.program.steps[self.program.count]
        step.kind = kind
        step.counts_rows = symbol == "R"
        step.count = count
        self.program.count += 1
        return step

    def add_rows(self, str symbol, list ops):
        """Add a chain of ops on rows; each is a dict of ``struct row_op``'s members, addresses as integers."""
        cdef c_step *step = self._new_step(<step_kind_t>ROWS_STEP, symbol, 0)
        cdef row_op *record
        step.rows = <row_op *>calloc(len(ops), sizeof(row_op))
        if step.rows == NULL:
            raise MemoryError("no memory for a step")
        for op in ops:
            record = &step.rows[step.count]
            record.kind = <row_kind_t><int>ROW_KINDS[op["kind"]]
            record.a = <const float *><uintptr_t>op.get("a", 0)
            record.b = <const float *><uintptr_t>op.get("b", 0)
            record.out = <void *><uintptr_t>op["out"]
            record.width = op["width"]
            record.weight = <const void *><uintptr_t>op.get("weight", 0)
            record.format = <format_t><int>op.get("format", 0)
            record.activation = <activation_t><int>op.get("activation", 0)
            record.n_heads = op.get("n_heads", 0)
            record.head_dim = op.get("head_dim", 0)
            if "cache" in op:
                record.head = head_of(op["cache"])
            record.halves = op.get("halves", 0)
            record.eps = op.get("eps", 0)
            record.n_experts = op.get("n_experts", 0)
            record.n_used = op.get("n_used", 0)
            record.slots = <void *><uintptr_t>op.get("slots", 0)
            record.shared = op.get("shared", 0)
            step.count += 1

    def add_linear(self, str symbol, list parts):
        """Add linears that run together: (weight, x, out, format, N, K) each."""
        cdef c_step *step = self._new_step(<step_kind_t>LINEAR_STEP, symbol, 0)
        cdef linear_part *record
        step.parts = <linear_part *>calloc(len(parts), sizeof(linear_part))
        if step.parts == NULL:
            raise MemoryError("no memory for a step")
        for weight, x, out, format, N, K in parts:
            record = &step.parts[step.count]
            record.weight = <const void *><uintptr_t>weight
            record.x = <const void *><uintptr_t>x
            record.out = <float *><uintptr_t>out
            record.format = <format_t><int>format
            record.N = N
            record.K = K
            record.groups = groups_of(N)
            step.count += 1

    def add_gather(self, str symbol, uintptr_t routing, uintptr_t slots, size_t n_experts, size_t n_used):
        """Add the sorting of slots by expert."""
        cdef c_step *step = self._new_step(<step_kind_t>GATHER_STEP, symbol, 1)
        step.gather = gather_op(<const float *>routing, <void *>slots, n_experts, n_used)

    def add_experts(self, str symbol, list parts):
        """Add linears over stacks of experts: (weight, x, out, format, N, K, slots, n_experts, n_used) each."""
        cdef c_step *step = self._new_step(<step_kind_t>EXPERTS_STEP, symbol, 0)
        cdef expert_part *record
        step.experts = <expert_part *>calloc(len(parts), sizeof(expert_part))
        if step.experts == NULL:
            raise MemoryError("no memory for a step")
        for weight, x, out, format, N, K, slots, n_experts, n_used in parts:
            record = &step.experts[step.count]
            record.weight = <const void *><uintptr_t>weight
            record.x = <const void *><uintptr_t>x
            record.out = <float *><uintptr_t>out
            record.format = <format_t><int>format
            record.N = N
            record.K = K
            record.groups = groups_of(N)
            record.slots = <void *><uintptr_t>slots
            record.n_experts = n_experts
            record.n_used = n_used
            step.count += 1

    def add_attention(self, uintptr_t q, uintptr_t sinks, uintptr_t out, uintptr_t pages, cache, attrs):
        """Add attention with the op's attributes to *cache*, a CacheSpec whose pages stand at *pages*."""
        cdef c_step *step = self._new_step(<step_kind_t>ATTENTION_STEP, "T", 1)
        step.attention.q = <const float *>q
        step.attention.sinks = <const float *>sinks
        step.attention.out = <float *>out
        step.attention.cache = <const char *>pages
        step.attention.head = head_of(cache)
        step.attention.n_heads = attrs["n_heads"]
        step.attention.n_kv_heads = attrs["n_kv_heads"]
        step.attention.window = attrs["window"]
        step.attention.scale = attrs["scale"]
        step.attention.softcap = attrs["softcap"]

    def run(self, array, tuple lengths, tuple positions, tuple pages, tuple rows):
        """Run all steps once. False, and nothing is written, when one of the numbers does not fit the program."""
        cdef Py_buffer view
        cdef bint runs = False
        PyObject_GetBuffer(array, &view, PyBUF_FORMAT | PyBUF_ND | PyBUF_STRIDES)
        try:
            with self.pool.lock:
                if self._takes(lengths, positions, pages, rows) and self._takes_input(&view):
                    self.program.given.input = <const char *>view.buf
                    with nogil:
                        program_run(&self.program)
                    runs = True
        except (OverflowError, TypeError):  # an integer that has not 32 bits
            pass
        finally:
            PyBuffer_Release(&view)
        return runs

    cdef bint _takes_input(self, Py_buffer *view) except -1:
        """Whether the input has the declared shape and holds tokens of the vocabulary. It may stand at any address."""
        cdef size_t T = self.program.given.T, t
        cdef int32_t token_id
        cdef bint is_rows = self.width > 0
        cdef const char *format = view.format
        if format[0] in b"=@^":
            format += 1
        if format[0] != (c"f" if is_rows else c"i") or format[1] or view.itemsize != 4 or view.ndim != 1 + is_rows:
            return False
        if <size_t>view.shape[0] != T or (is_rows and <size_t>view.shape[1] != self.width):
            return False
        if not PyBuffer_IsContiguous(view, c"C"):
            return False
        for t in range(T if self.vocabulary else 0):
            memcpy(&token_id, <const char *>view.buf + t * sizeof(int32_t), sizeof(int32_t))
            if token_id < 0 or token_id >= self.vocabulary:
                return False
        return True

    cdef bint _takes(self, tuple lengths, tuple positions, tuple pages, tuple rows) except -1:
        """Take the numbers of a step, or return False: ``Step.check`` says the same in words."""
        cdef c_pass *given = &self.program.given
        cdef int32_t *position = self.numbers
        cdef int32_t *page = position + self.max_tokens
        cdef int32_t *row = page + self.max_tokens
        cdef int32_t *first_token = row + self.max_tokens
        cdef size_t B = len(lengths), R = len(rows), T = 0, b, r
        cdef int32_t length, start, i
        if <size_t>len(positions) != B or B > self.max_tokens or not self._takes_pages(pages, B):
            return False
        for b in range(B):
            first_token[b] = <int32_t>T
            length, start = lengths[b], positions[b]
            if length < 1 or start < 0 or <size_t>length > self.max_tokens - T or start > INT32_MAX - <int32_t>T - length:
                return False
            if self.kv_pages >= 0 and <size_t>start + length > <size_t>len(pages[b]) * PAGE_SLOTS:
                return False
            for i in range(length):
                position[T] = start + i
                page[T] = self.tables[b][position[T] // PAGE_SLOTS] if self.kv_pages >= 0 else 0
                T += 1
        first_token[B] = <int32_t>T
        if R > min(T, self.max_rows):
            return False
        for r in range(R):
            row[r] = rows[r]
            if row[r] < 0 or <size_t>row[r] >= T:
                return False
        given[0] = c_pass(T, R, B, NULL, row, position, page, first_token, self.tables)
        return True

    cdef bint _takes_pages(self, tuple pages, size_t B) except -1:
        """Take the page tables; a program without a cache has none."""
        cdef size_t b, count = 0
        cdef int32_t *next
        if self.kv_pages < 0:
            return True
        if <size_t>len(pages) != B:
            return False
        for table in pages:
            if len(table) > self.kv_pages:
                return False
            count += len(table)
        if count > self.table_room:
            next = <int32_t *>realloc(self.table_numbers, count * sizeof(int32_t))
            if next == NULL:
                raise MemoryError("no memory for page tables")
            self.table_numbers, self.table_room = next, count
        next = self.table_numbers
        for b in range(B):
            self.tables[b] = next
            for number in <tuple?>pages[b]:
                next[0] = number
                if not 0 <= next[0] < self.kv_pages:
                    return False
                next += 1
        return True
