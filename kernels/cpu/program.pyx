"""Compiled programs of the CPU device: a thin class over ``program.h``.

Addresses come from :mod:`memory`, never from a peer. Shapes of programs have been checked before they come here; what
each run brings is checked where it is taken, in one call.
"""

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport INT32_MAX, int32_t, uintptr_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy

from program_h cimport (
    ACTIVATION_FUNCTIONS, ROW_KINDS as N_ROW_KINDS, activation_names, row_names,
    ATTENTION_STEP, EXPERTS_STEP, GATHER_STEP, LINEAR_STEP, ROWS_STEP,
    C_CHECKS_INDICES, C_SPLIT_PAGES, KV_F16, KV_Q8_0, PAGE_SLOTS,
    activation_t, attention_floats, c_page_nbytes, c_pass, c_pool, c_program, c_state_floats, c_step, format_t, gather_op,
    groups_of, kernel_table, kv_head, kv_type_t, linear_part, program_run, row_kind_t, row_op, row_weight, slots_size,
    step_kind_t,
)

ROW_KINDS = {row_names[i].decode(): i for i in range(N_ROW_KINDS) if row_names[i] != NULL}
ACTIVATIONS = tuple(activation_names[i].decode() for i in range(ACTIVATION_FUNCTIONS))  # in the order of their numbers

SPLIT_PAGES = C_SPLIT_PAGES
KV_TYPES = {"f16": KV_F16, "q8_0": KV_Q8_0}
CHECKS_INDICES = bool(C_CHECKS_INDICES)  # whether this is a debug build, whose kernels check every index


cdef kv_head head_of(cache):
    """Return how a kv head of *cache*, a PagedKvSpec, is kept."""
    return kv_head(<kv_type_t><int>KV_TYPES[cache.type], cache.head_dim, cache.value_dim)


def attention_scratch_nbytes(cache):
    """Return the bytes that each thread works in during attention to *cache*."""
    cdef kv_head head = head_of(cache)
    return sizeof(float) * attention_floats(&head)


def softmax_state_nbytes(cache):
    """Return the bytes of the partial softmax state (m, l, o) of one query head over one KV split."""
    cdef kv_head head = head_of(cache)
    return sizeof(float) * c_state_floats(&head)


def page_nbytes(cache):
    """Return the bytes of one page of one kv head, keys and values."""
    cdef kv_head head = head_of(cache)
    return c_page_nbytes(&head)


def slots_nbytes(size_t T, size_t n_experts, size_t n_used):
    """Return the bytes that the slots of T rows take, sorted by expert."""
    return slots_size(T, n_experts, n_used)


cdef class CompiledProgram:
    """Steps with all addresses resolved. Built once by ``add_*``, run many times.

    Args:
        kernels: a capsule of :func:`simd.kernels_named`.
        pool: the :class:`pool.Pool` that the steps run on.
        scratch: address of attention's scratch, *thread_scratch* floats for each thread.
        softmax_states: address of *n_state_floats* floats for the softmax states of attention's KV splits.
        max_tokens: the most tokens, and sequences, of one run; max_rows: the most rows it may ask for.
        kv_pages: pages in each cache; -1 for a program without caches.
        width: D of an input float32 [T, D]; 0 for token ids int32 [T], of a *vocabulary* that is 0 if any will do.
    """

    cdef c_program program
    cdef object pool, lock
    cdef int capacity
    cdef int32_t *numbers           # positions, pages, rows, pages of tables [max_tokens] each, first_token [max_tokens + 1]
    cdef const int32_t **tables     # [max_tokens], each somewhere in table_numbers
    cdef int32_t *table_numbers
    cdef size_t table_room, max_tokens, max_rows, width
    cdef long kv_pages
    cdef int vocabulary

    def __cinit__(
        self,
        kernels,
        pool,
        int n_steps,
        *,
        uintptr_t scratch,
        size_t thread_scratch,
        uintptr_t softmax_states,
        size_t n_state_floats,
        size_t max_tokens,
        size_t max_rows,
        long kv_pages,
        size_t width,
        int vocabulary,
    ):
        self.pool, self.lock = pool, pool.lock
        self.capacity = n_steps
        self.max_tokens, self.max_rows, self.kv_pages = max_tokens, max_rows, kv_pages
        self.width, self.vocabulary = width, vocabulary
        self.program.kernels = <const kernel_table *>PyCapsule_GetPointer(kernels, "kernels")
        self.program.pool = <c_pool *>PyCapsule_GetPointer(pool.handle, "pool")
        self.program.scratch = <float *>scratch
        self.program.thread_scratch = thread_scratch
        self.program.softmax_states = <float *>softmax_states
        self.program.n_state_floats = n_state_floats
        self.program.kv_pages = <size_t>max(kv_pages, 0)
        self.program.steps = <c_step *>calloc(n_steps + 1, sizeof(c_step))
        self.numbers = <int32_t *>calloc(5 * max_tokens + 1, sizeof(int32_t))
        self.tables = <const int32_t **>calloc(max_tokens + 1, sizeof(int32_t *))
        if self.program.steps == NULL or self.numbers == NULL or self.tables == NULL:
            raise MemoryError("no memory for a program")

    def __dealloc__(self):
        cdef int i
        if self.program.steps != NULL:
            for i in range(self.program.count):
                free(self.program.steps[i].rows)
                free(self.program.steps[i].parts)
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
        cdef int i
        step.rows = <row_op *>calloc(len(ops), sizeof(row_op))
        if step.rows == NULL:
            raise MemoryError("no memory for a step")
        for op in ops:
            record = &step.rows[step.count]
            record.kind = <row_kind_t><int>ROW_KINDS[op["kind"]]
            record.a = <const float *><uintptr_t>op.get("a", 0)
            record.b = <const float *><uintptr_t>op.get("b", 0)
            record.out = <void *><uintptr_t>op["out"]
            record.a_width, record.b_width, record.width = op.get("a_width", 0), op.get("b_width", 0), op["width"]
            for i, weight in enumerate(op["weights"]):
                record.weights[i] = row_weight(
                    <const void *><uintptr_t>weight["at"], weight["count"], weight["nbytes"]
                )
            for i, number in enumerate(op["numbers"]):
                record.numbers[i] = number
            record.choice = op["choice"]
            record.head_dim = op.get("head_dim", 0)
            record.format = <format_t><int>op.get("format", 0)
            record.activation = <activation_t><int>op.get("activation", 0)
            if "cache" in op:
                record.head = head_of(op["cache"])
            record.n_heads = op.get("n_heads", 0)
            record.slots = <void *><uintptr_t>op.get("slots", 0)
            record.n_experts, record.n_used = op.get("n_experts", 0), op.get("n_used", 0)
            record.shared = op.get("shared", 0)
            record.a_nbytes, record.b_nbytes = op.get("a_nbytes", 0), op.get("b_nbytes", 0)
            record.out_nbytes, record.slots_nbytes = op["out_nbytes"], op.get("slots_nbytes", 0)
            step.count += 1

    def add_linears(self, str symbol, list parts, *, bint of_experts):
        """Add linears that run together; each is a dict of ``struct linear_part``'s members, addresses as integers.

        Args:
            of_experts: the weights are stacks of experts, and each has a table of slots.
        """
        cdef step_kind_t kind = <step_kind_t>(EXPERTS_STEP if of_experts else LINEAR_STEP)
        cdef c_step *step = self._new_step(kind, symbol, 0)
        cdef linear_part *record
        step.parts = <linear_part *>calloc(len(parts), sizeof(linear_part))
        if step.parts == NULL:
            raise MemoryError("no memory for a step")
        for part in parts:
            record = &step.parts[step.count]
            record.weight = <const void *><uintptr_t>part["weight"]
            record.x = <const void *><uintptr_t>part["x"]
            record.out = <float *><uintptr_t>part["out"]
            record.format = <format_t><int>part["format"]
            record.N = part["N"]
            record.K = part["K"]
            record.groups = groups_of(record.N)
            record.slots = <void *><uintptr_t>part.get("slots", 0)
            record.n_experts = part.get("n_experts", 0)
            record.n_used = part.get("n_used", 0)
            record.weight_nbytes, record.x_nbytes = part["weight_nbytes"], part["x_nbytes"]
            record.out_nbytes, record.slots_nbytes = part["out_nbytes"], part.get("slots_nbytes", 0)
            step.count += 1

    def add_gather(self, str symbol, op):
        """Add the sorting of slots by expert, a dict of ``struct gather_op``'s members."""
        cdef c_step *step = self._new_step(<step_kind_t>GATHER_STEP, symbol, 1)
        step.gather = gather_op(
            <const float *><uintptr_t>op["chosen"], <void *><uintptr_t>op["slots"], op["n_experts"], op["n_used"],
            op["chosen_nbytes"], op["slots_nbytes"],
        )

    def add_attention(self, op, cache, attrs):
        """Add attention with the op's attributes to *cache*, a PagedKvSpec.

        Args:
            op: a dict of ``struct attention_op``'s addresses and sizes in bytes: q, sinks, out, cache.
        """
        cdef c_step *step = self._new_step(<step_kind_t>ATTENTION_STEP, "T", 1)
        step.attention.q = <const float *><uintptr_t>op["q"]
        step.attention.sinks = <const float *><uintptr_t>op["sinks"]
        step.attention.out = <float *><uintptr_t>op["out"]
        step.attention.cache = <const char *><uintptr_t>op["cache"]
        step.attention.q_nbytes, step.attention.sinks_nbytes = op["q_nbytes"], op["sinks_nbytes"]
        step.attention.out_nbytes, step.attention.cache_nbytes = op["out_nbytes"], op["cache_nbytes"]
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
            with self.lock:
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
        cdef int32_t *table_pages = row + self.max_tokens
        cdef int32_t *first_token = table_pages + self.max_tokens
        cdef size_t B = len(lengths), R = len(rows), T = 0, b, r
        cdef int32_t length, start, i
        if <size_t>len(positions) != B or B > self.max_tokens or not self._takes_pages(pages, B):
            return False
        for b in range(B):
            first_token[b] = <int32_t>T
            table_pages[b] = <int32_t>len(pages[b]) if self.kv_pages >= 0 else 0
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
        given[0] = c_pass(T, R, B, NULL, row, position, page, first_token, self.tables, table_pages)
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
