/* The ops on rows: one word each, from which are made their numbers, their names, the table of their loops and their dispatch.
 *
 *   plain    a loop in lanes over rows of one width, row_NAME in a header of this folder; vectors are of the row's or a head's width
 *   lane     likewise, over rows of several widths
 *   pass     what reads the pass, or writes what is no row of floats: run_NAME in runtime/program.h
 *
 * A name is the op's in ollama_zmq/ops; copy, angles, pack and pack_slots are what plan.py adds.
 */
#ifndef OLLAMA_ROW_TABLE_H
#define OLLAMA_ROW_TABLE_H

#include "attention/page.h"
#include "formats/activations.h"

#define PLAIN_ROWS(op) \
    op(activation) op(add) op(add_bias) op(clamp) op(gated) op(l2_norm) op(layer_norm) op(mul) op(mul_weight) op(rms_norm) \
    op(scale) op(scale_by_position) op(softcap) op(swiglu_clamped) op(xielu)
#define LANE_ROWS(op) PLAIN_ROWS(op) op(choose_experts) op(expert_shares) op(expert_sum) op(join_heads) op(rope) op(take_of_heads)
#define PASS_ROWS(op) op(angles) op(copy) op(embed) op(expert_bias) op(pack) op(pack_slots) op(store_kv) op(take_rows)

#define ROW_NUMBER(name) ROW_##name,
#define ROW_NAME(name) #name,
enum row_kind { LANE_ROWS(ROW_NUMBER) LANE_ROW_KINDS, LAST_LANE_ROW = LANE_ROW_KINDS - 1, PASS_ROWS(ROW_NUMBER) ROW_KINDS };
enum { PLAIN_ROW_KINDS = ROW_choose_experts, ROW_WEIGHTS = 2, ROW_NUMBERS = 8 };
static const char *const row_names[] = {LANE_ROWS(ROW_NAME) PASS_ROWS(ROW_NAME)};

/* The functions of activation and gated, in the order in which ops/activation.py declares them. */
#define ACTIVATIONS(op, with) \
    op(silu, with) op(gelu_tanh, with) op(gelu_erf, with) op(sigmoid, with) op(softplus, with) op(relu, with) op(relu2, with)
#define ACTIVATION_NUMBER(name, with) ACTIVATION_##name,
#define ACTIVATION_NAME(name, with) #name,
enum activation_function { ACTIVATIONS(ACTIVATION_NUMBER, 0) ACTIVATION_FUNCTIONS };
static const char *const activation_names[] = {ACTIVATIONS(ACTIVATION_NAME, 0)};

/* The scores of experts, in the order in which ops/choose_experts.py declares them. */
enum expert_scores { SCORES_softmax, SCORES_sigmoid, SCORES_sqrt_softplus };

/* A weight of an op, NULL where a call has none: a vector of float32, or packed. */
struct row_weight { const void *at; size_t count, nbytes; };    /* numbers; bytes planned, read by checks.h */

/* One op of a chain. Which members count depends on the op; what is read and written stands in rows of so many floats. */
struct row_op {
    enum row_kind kind;
    const float *a, *b;
    void *out;                              /* floats, a cache, or panels */
    size_t a_width, b_width, width;         /* width: of out; pack: of a; angles: rotary_dim */
    struct row_weight weights[ROW_WEIGHTS]; /* in the declared order; angles: double frequencies [width / 2] */
    double numbers[ROW_NUMBERS];            /* the op's attributes that are no words, in the declared order */
    int choice;                             /* which of its words an attribute is */
    size_t head_dim;                        /* numbers of a head */
    enum format format;                     /* of a packed weight */
    enum activation activation;             /* pack, pack_slots */
    struct kv_head head;                    /* store_kv */
    size_t n_heads;                         /* store_kv */
    void *slots;                            /* pack_slots: struct slots (runtime/experts.h) */
    size_t n_experts, n_used;               /* pack_slots */
    int shared;                             /* pack_slots: a row's slots have one x */
    size_t a_nbytes, b_nbytes, out_nbytes, slots_nbytes;    /* what was planned: read by checks.h */
};

/* What is different for each row. */
struct row {
    const float *a, *b;
    float *out;
    int32_t position;                       /* of the row's token */
};

typedef void row_kernel(const struct row_op *op, const struct row *row);

#endif
