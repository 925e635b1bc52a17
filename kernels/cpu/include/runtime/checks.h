/* Whether ops stay inside of what was planned for them, in debug builds (check.h); nothing otherwise. Included by program.h. */
#ifndef OLLAMA_CHECKS_H
#define OLLAMA_CHECKS_H

#include "check.h"
#include "runtime/steps.h"

#ifdef OLLAMA_CHECK_INDICES

/* Every expert and column of a table of slots. */
static void check_slots(const void *table, size_t nbytes, size_t T, size_t n_experts, size_t n_used)
{
    CHECK_END(slots_nbytes(T, n_experts, n_used), nbytes);
    struct slots s = slots_at((void *)table, T, n_experts, n_used);
    CHECK_END(*s.used_count, n_experts);
    CHECK_INDEX(s.first[n_experts], T * n_used + 1);
    for (int32_t i = 0; i < *s.used_count; i++) CHECK_INDEX(s.used[i], n_experts);
    for (size_t e = 0; e < n_experts; e++) CHECK_END(s.first[e], s.first[e + 1]);
    for (size_t i = 0; i < T * n_used; i++) {
        CHECK_INDEX(s.expert[i], n_experts);
        CHECK_INDEX(s.column[i] - s.first[s.expert[i]], s.first[s.expert[i] + 1] - s.first[s.expert[i]]);
        CHECK_INDEX(s.slot[i], T * n_used);
    }
}

/* Row t of the floats that an op reads and writes. */
static void check_floats(const struct row_op *op, size_t t, size_t a_width, size_t b_width, size_t out_width)
{
    CHECK_END((t + 1) * a_width * sizeof(float), op->a_nbytes);
    CHECK_END((t + 1) * b_width * sizeof(float), op->b_nbytes);
    CHECK_END((t + 1) * out_width * sizeof(float), op->out_nbytes);
}

static void check_copy(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    check_floats(op, t, 0, 0, op->width);
}

static void check_embed(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    size_t rows = groups_of(looked_up_at(p, op, t) + 1) * GROUP_ROWS;
    check_floats(op, t, 0, 0, op->width);
    CHECK_END(rows * row_nbytes(op->format, op->width), op->weights[0].nbytes);
}

static void check_take_rows(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    CHECK_INDEX(p->pass.rows[t], p->pass.T);
    check_floats(op, t, 0, 0, op->width);
    CHECK_END(((size_t)p->pass.rows[t] + 1) * op->width * sizeof(float), op->a_nbytes);
}

static void check_angles(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    check_floats(op, t, 0, 0, op->width);
    CHECK_END(op->width / 2 * sizeof(double), op->weights[0].nbytes);
}

static void check_store_kv(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    check_floats(op, t, op->n_heads * op->head.keys, op->n_heads * op->head.values, 0);
    CHECK_INDEX(p->pass.pages[t], p->kv_pages);
    CHECK_END(((size_t)p->pass.pages[t] + 1) * op->n_heads * page_nbytes(&op->head), op->out_nbytes);
}

static void check_pack(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    check_floats(op, t, op->width, 0, 0);
    CHECK_END(count * activation_nbytes(op->activation, op->width), op->out_nbytes);
}

static void check_pack_slots(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    check_slots(op->slots, op->slots_nbytes, count, op->n_experts, op->n_used);
    check_floats(op, t, (op->shared ? 1 : op->n_used) * op->width, 0, 0);
    CHECK_END(count * op->n_used * activation_nbytes(op->activation, op->width), op->out_nbytes);
}

static void check_expert_bias(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    size_t J = (size_t)op->numbers[0];
    check_floats(op, t, op->a_width, op->b_width, op->width);
    CHECK_INDEX(op->width % J, 1);
    CHECK_END(groups_of(op->b_width) * GROUP_ROWS * row_nbytes(op->format, op->width / J), op->weights[0].nbytes);
}

/* Vectors are of a row's width, of a head's, or one number; heads fill a row. */
static void check_lanes(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    check_floats(op, t, op->a_width, op->b_width, op->width);
    CHECK_INDEX(t, p->pass.T);
    CHECK_INDEX(op->head_dim ? op->width % op->head_dim : 0, 1);
    for (int i = 0; i < ROW_WEIGHTS; i++) CHECK_END(op->weights[i].count * sizeof(float), op->weights[i].nbytes);
}

#define CHECK_ROW(name) case ROW_##name: check_##name(p, op, t, count); break;

static void check_row(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    CHECK_INDEX(t, count);
    switch (op->kind) {
    PASS_ROWS(CHECK_ROW)
    default: check_lanes(p, op, t, count);
    }
}

static void check_linear(const struct linear_part *part, size_t T)
{
    size_t x_nbytes = activation_nbytes(format_infos[part->format].x, part->K);
    CHECK_END(part->groups * GROUP_ROWS * row_nbytes(part->format, part->K), part->weight_nbytes);
    CHECK_END(T * x_nbytes, part->x_nbytes);
    CHECK_END(T * part->N * sizeof(float), part->out_nbytes);
}

static void check_experts(const struct linear_part *part, size_t T)
{
    check_slots(part->slots, part->slots_nbytes, T, part->n_experts, part->n_used);
    check_linear(part, T * part->n_used);
    CHECK_END(part->n_experts * part->groups * GROUP_ROWS * row_nbytes(part->format, part->K), part->weight_nbytes);
}

static void check_gather(const struct gather_op *op, size_t T)
{
    CHECK_END(op->chosen ? T * op->n_experts * sizeof(float) : 0, op->chosen_nbytes);
    CHECK_END(slots_nbytes(T, op->n_experts, op->n_used), op->slots_nbytes);
}

static void check_attention(const struct program *p, const struct attention_op *op)
{
    CHECK_END(p->pass.T * op->n_heads * op->head.keys * sizeof(float), op->q_nbytes);
    CHECK_END(p->pass.T * op->n_heads * op->head.values * sizeof(float), op->out_nbytes);
    CHECK_END(op->sinks ? op->n_heads * sizeof(float) : 0, op->sinks_nbytes);
    CHECK_END(p->kv_pages * op->n_kv_heads * page_nbytes(&op->head), op->cache_nbytes);
    CHECK_END(attention_scratch(&op->head), p->thread_scratch);
}

#else
#define check_row(p, op, t, count) ((void)0)
#define check_linear(part, T) ((void)0)
#define check_experts(part, T) ((void)0)
#define check_gather(op, T) ((void)0)
#define check_attention(p, op) ((void)0)
#endif

#endif
