/* What a compiled program is made of: its steps, the ops in them, and what one run brings. */
#ifndef OLLAMA_STEPS_H
#define OLLAMA_STEPS_H

#include "attention/page.h"
#include "runtime/experts.h"
#include "runtime/pool.h"

enum row_kind { COPY, EMBED, TAKE_ROWS, ADD, ADD_BIAS, RMS_NORM, LAYER_NORM, SILU_MUL, ANGLES, ROPE, STORE_KV, PACK, ROUTE, PACK_SLOTS, EXPERT_SUM };

/* One op of a chain. Which members count depends on the kind; a and b are read, out is written, width is values per row. */
struct row_op {
    enum row_kind kind;
    const float *a, *b;             /* [rows, width] */
    void *out;
    size_t width;
    const void *weight;             /* EMBED's packed [V, D]; RMS_NORM, LAYER_NORM, ADD_BIAS float [width]; ANGLES double [width / 2] */
    enum format format;             /* of EMBED's weight */
    enum activation activation;     /* of PACK */
    size_t n_heads, head_dim;       /* ROPE; STORE_KV's n_heads */
    struct kv_head head;            /* STORE_KV */
    int halves;                     /* ROPE: which values make a pair */
    float eps;                      /* RMS_NORM, LAYER_NORM */
    size_t n_experts, n_used;       /* ROUTE, PACK_SLOTS, EXPERT_SUM */
    void *slots;                    /* PACK_SLOTS, EXPERT_SUM: struct slots */
    int shared;                     /* ROUTE: the softmax is over all; PACK_SLOTS: a row's slots have one x */
    size_t a_nbytes, b_nbytes, out_nbytes, weight_nbytes, slots_nbytes;     /* what was planned: read by checks.h */
};

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

#endif
