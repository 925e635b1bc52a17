/* What an instruction set offers: one table of functions, filled by isa_*.c and chosen at run time (isa.h).
 *
 * All tables give equal bits for equal inputs: they are compiled from the same bodies (linear.h, attention.h ...) over
 * four vocabularies of lanes. Rows never depend on each other, nor on how many there are.
 */
#ifndef OLLAMA_KERNELS_H
#define OLLAMA_KERNELS_H

#include "activations.h"

/* out[t, n] = sum_k x[t, k] weight[n, k] for t < T and the 16 n of each group. */
struct linear_job {
    const void *weight;     /* packed groups */
    const void *x;          /* panels of T columns, of the kind the format takes */
    float *out;             /* [T, N] */
    size_t K, N, T;
    const int32_t *rows;    /* [T], which row of out is token t's; NULL: its own */
};

typedef void linear_kernel(const struct linear_job *job, size_t first_group, size_t end_group);

/* One kv head of one sequence, for some of its columns. A column is one query head of one token: column c is token c / group,
 * head c % group of the kv head. The KV pages are laid out as page.h says. */
struct attention_job {
    const float *q;             /* in  [tokens, n_heads * head_dim], at this kv head's first query head */
    float *out;                 /* out, the same layout */
    const uint16_t *cache;      /* page 0, this kv head */
    const int32_t *pages;       /* page table of the sequence */
    size_t page_stride;         /* values from one page to the next */
    size_t row_stride;          /* n_heads * head_dim */
    size_t head_dim, group;
    size_t position;            /* of the sequence's first token in this pass */
    float scale;
    float *scratch;             /* attention_scratch(head_dim) floats */
};

struct kernels {
    const char *name;           /* "avx512" */
    size_t panel_columns;       /* columns of an activation panel */
    linear_kernel *linear[FORMATS];
    void (*pack_activation)(enum activation kind, const float *x, size_t K, struct column column, void *panels);
    void (*rms_norm)(const float *x, const float *weight, float *out, size_t D, float eps);
    void (*silu_mul)(const float *gate, const float *up, float *out, size_t F);
    void (*route)(const float *logits, float *routing, size_t n_experts, size_t n_used, int over_all);
    void (*expert_sum)(const float *x, const float *routing, const int32_t *experts, float *out, size_t n_used, size_t D);
    void (*rope)(const float *x, const float *cos_sin, float *out, size_t n_heads, size_t head_dim, size_t rotary_dim, int halves);
    void (*store_keys)(const float *k, uint16_t *keys, size_t slot, size_t head_dim);
    void (*store_values)(const float *v, uint16_t *values, size_t slot, size_t head_dim);
    void (*attention)(const struct attention_job *job, size_t first_column, size_t end_column);
};

extern const struct kernels kernels_generic, kernels_avx2, kernels_avx512, kernels_neon, kernels_neon_dot;

#endif
