"""``program.h`` as Cython sees it."""

from libc.stdint cimport int32_t

cdef extern from "runtime/program.h" nogil:
    ctypedef struct kernel_table "struct kernels":
        pass
    ctypedef struct c_pool "struct pool":
        pass
    ctypedef int format_t "enum format"
    ctypedef int activation_t "enum activation"
    ctypedef int row_kind_t "enum row_kind"
    ctypedef int step_kind_t "enum step_kind"
    cdef enum:
        ROW_KINDS, ROW_WEIGHTS, ROW_NUMBERS, ACTIVATION_FUNCTIONS
        ROWS_STEP, LINEAR_STEP, ATTENTION_STEP, GATHER_STEP, EXPERTS_STEP
        PAGE_SLOTS
    const char *const row_names[]
    const char *const activation_names[]
    size_t groups_of(size_t N)
    ctypedef int kv_type_t "enum kv_type"
    ctypedef struct kv_head "struct kv_head":
        kv_type_t type
        size_t keys
        size_t values
    cdef enum:
        KV_F16, KV_Q8_0
        C_CHECKS_INDICES "CHECKS_INDICES"
        C_SPLIT_PAGES "SPLIT_PAGES"
    size_t attention_floats "attention_scratch"(const kv_head *head)
    size_t c_state_floats "state_floats"(const kv_head *head)
    size_t c_page_nbytes "page_nbytes"(const kv_head *head)
    size_t slots_size "slots_nbytes"(size_t T, size_t n_experts, size_t n_used)
    ctypedef struct row_weight "struct row_weight":
        const void *at
        size_t count
        size_t nbytes
    ctypedef struct row_op "struct row_op":
        row_kind_t kind
        const float *a
        const float *b
        void *out
        size_t a_width
        size_t b_width
        size_t width
        row_weight weights[2]
        double numbers[8]
        int choice
        size_t head_dim
        format_t format
        activation_t activation
        kv_head head
        size_t n_heads
        void *slots
        size_t n_experts
        size_t n_used
        int shared
        size_t a_nbytes
        size_t b_nbytes
        size_t out_nbytes
        size_t slots_nbytes
    ctypedef struct linear_part "struct linear_part":
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
        size_t weight_nbytes
        size_t x_nbytes
        size_t out_nbytes
        size_t slots_nbytes
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
        size_t q_nbytes
        size_t sinks_nbytes
        size_t out_nbytes
        size_t cache_nbytes
    ctypedef struct gather_op "struct gather_op":
        const float *chosen
        void *slots
        size_t n_experts
        size_t n_used
        size_t chosen_nbytes
        size_t slots_nbytes
    ctypedef struct c_step "struct step":
        step_kind_t kind
        int counts_rows
        int count
        row_op *rows
        linear_part *parts
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
        const int32_t *table_pages
    ctypedef struct c_program "struct program":
        const kernel_table *kernels
        c_pool *pool
        c_step *steps
        int count
        float *scratch
        size_t thread_scratch
        float *softmax_states
        size_t n_state_floats
        size_t kv_pages
        c_pass given "pass"
    void program_run(c_program *p)
