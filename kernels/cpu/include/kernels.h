/* What an instruction set offers: one table of functions, filled by isa_*.c and chosen at run time (isa.h).
 *
 * All tables give equal bits for equal inputs: they are compiled from the same bodies (linear.h, attention.h ...) over
 * four vocabularies of lanes. Rows never depend on each other, nor on how many there are.
 */
#ifndef OLLAMA_KERNELS_H
#define OLLAMA_KERNELS_H

#include "attention/page.h"
#include "check.h"
#include "formats/activations.h"
#include "rows/table.h"

/* out[t, n] = sum_k x[t, k] weight[n, k] for t < T and the 16 n of each group. */
struct linear_job {
    const void *weight;     /* packed groups */
    const void *x;          /* panels of T columns, of the kind the format takes */
    float *out;             /* [T, N] */
    size_t K, N, T;
    const int32_t *rows;    /* [T], which row of out is token t's; NULL: its own */
    CHECKED(size_t weight_nbytes, x_nbytes, out_rows;)
};

typedef void linear_kernel(const struct linear_job *job, size_t first_group, size_t end_group);

/* One kv head of one sequence. A column is one query head of one token: column c is token c / group, head c % group of the kv head.
 * It attends to its own slot and the window - 1 before. Softmax states are page.h's. */
struct attention_job {
    const float *q;             /* in  [tokens, n_heads * head.keys], at this kv head's first query head */
    float *out;                 /* out [tokens, n_heads * head.values], likewise */
    const char *cache;          /* page 0, this kv head */
    const int32_t *pages;       /* page table of the sequence */
    const float *sinks;         /* [group], or NULL */
    size_t page_stride;         /* bytes from one page to the next */
    struct kv_head head;
    size_t n_heads, group;
    size_t position;            /* of the sequence's first token in this pass */
    size_t window;
    float scale, softcap;       /* softcap 0: none */
    float *scratch;             /* attention_scratch(&head) floats */
    CHECKED(size_t table_pages, kv_pages;)
};

struct kernels {
    const char *name;           /* "avx512" */
    size_t panel_columns;       /* columns of an activation panel */
    linear_kernel *linear[FORMATS];
    void (*pack_activation)(enum activation kind, const float *x, size_t K, struct column column, void *panels);
    row_kernel *rows[LANE_ROW_KINDS];
    void (*store_keys[KV_TYPES])(const float *k, char *keys, size_t slot, size_t head_dim);
    void (*store_values[KV_TYPES])(const float *v, char *values, size_t slot, size_t value_dim);
    void (*attention)(const struct attention_job *job, size_t first_column, size_t count);
    void (*attention_split)(const struct attention_job *job, size_t first_column, size_t count, size_t split, float *states);
    void (*attention_join)(const struct attention_job *job, size_t column, float *states, size_t stride, size_t first_split);
    uint32_t (*column_maxima)(const float *logits, size_t V, float *maxima, size_t n_columns);
    size_t (*find_from)(const float *logits, size_t V, float least, size_t n_equal, int32_t *ids);
    double (*exp_sum)(const float *logits, size_t V, float peak, float scale);
};

extern const struct kernels kernels_generic, kernels_avx2, kernels_avx2_vnni, kernels_avx512, kernels_neon, kernels_neon_dot;

#endif
