/* What a compiled program is made of: its steps, the ops in them, and what one run brings. */
#ifndef OLLAMA_STEPS_H
#define OLLAMA_STEPS_H

#include "attention/page.h"
#include "rows/table.h"
#include "runtime/experts.h"
#include "runtime/pool.h"

struct attention_op {
    const float *q, *sinks;
    float *out;
    const char *cache;
    struct kv_head head;
    size_t n_heads, n_kv_heads, window;
    float scale, softcap;
    size_t q_nbytes, sinks_nbytes, out_nbytes, cache_nbytes;                /* read by checks.h */
};

enum step_kind { ROWS_STEP, LINEAR_STEP, ATTENTION_STEP, GATHER_STEP, EXPERTS_STEP };

struct step {
    enum step_kind kind;
    int counts_rows;                /* rows are the R asked for, not the T tokens */
    int count;
    struct row_op *rows;            /* [count] */
    struct linear_part *parts;      /* [count], of linears and experts */
    struct attention_op attention;
    struct gather_op gather;
};

/* What one run brings. */
struct pass {
    size_t T, R, B;
    const char *input;              /* float32 or int32 [T, ...], of any alignment */
    const int32_t *rows;            /* [R] */
    const int32_t *positions;       /* [T] */
    const int32_t *pages;           /* [T], the page that token t's keys go to */
    const int32_t *first_token;     /* [B + 1] */
    const int32_t *const *tables;   /* [B], page tables */
    const int32_t *table_pages;     /* [B], how many pages each has */
};

struct program {
    const struct kernels *kernels;
    struct pool *pool;
    struct step *steps;
    int count;
    float *scratch;                 /* [threads][thread_scratch], attention's */
    size_t thread_scratch;
    float *softmax_states;          /* [n_state_floats], of attention's KV splits */
    size_t n_state_floats;
    size_t kv_pages;                /* of each cache; 0 for a program without */
    struct pass pass;
};

static inline int32_t token_id_at(const struct program *p, size_t t)
{
    int32_t token_id;
    memcpy(&token_id, p->pass.input + t * sizeof token_id, sizeof token_id);
    return token_id;
}

/* Row of the table of an embed: that of the token, or of its position. Either was checked before the pass began. */
static inline size_t looked_up_at(const struct program *p, const struct row_op *op, size_t t)
{
    return (size_t)(op->numbers[0] != 0 ? p->pass.positions[t] : token_id_at(p, t));
}

#endif
