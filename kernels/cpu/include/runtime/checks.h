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

/* Row t of count rows of a[width], of b[b_width] and of out[out_width], all float32. */
static void check_row_of(const struct row_op *op, size_t t, size_t a_width, size_t b_width, size_t out_width)
{
    CHECK_END((t + 1) * a_width * sizeof(float), op->a_nbytes);
    CHECK_END((t + 1) * b_width * sizeof(float), op->b_nbytes);
    CHECK_END((t + 1) * out_width * sizeof(float), op->out_nbytes);
}

static void check_embed(const struct program *p, const struct row_op *op, size_t t)
{
    int32_t token_id;
    memcpy(&token_id, p->pass.input + t * sizeof token_id, sizeof token_id);
    CHECK_END(groups_of((size_t)token_id + 1) * GROUP_ROWS * row_nbytes(op->format, op->width), op->weight_nbytes);
}

static void check_store(const struct program *p, const struct row_op *op, size_t t)
{
    check_row_of(op, t, op->n_heads * op->head.keys, op->n_heads * op->head.values, 0);
    CHECK_INDEX(p->pass.pages[t], p->kv_pages);
    CHECK_END(((size_t)p->pass.pages[t] + 1) * op->n_heads * page_nbytes(&op->head), op->out_nbytes);
}

static void check_row(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    size_t width = op->width;
    CHECK_INDEX(t, count);
    switch (op->kind) {
    case COPY: check_row_of(op, t, 0, 0, width); break;
    case EMBED: check_row_of(op, t, 0, 0, width); check_embed(p, op, t); break;
    case TAKE_ROWS:
        CHECK_INDEX(p->pass.rows[t], p->pass.T);
        check_row_of(op, t, 0, 0, width);
        CHECK_END(((size_t)p->pass.rows[t] + 1) * width * sizeof(float), op->a_nbytes);
        break;
    case ADD: case SILU_MUL: check_row_of(op, t, width, width, width); break;
    case ADD_BIAS: case RMS_NORM: case LAYER_NORM:
        check_row_of(op, t, width, 0, width);
        CHECK_END(width * sizeof(float), op->weight_nbytes);
        break;
    case ANGLES: check_row_of(op, t, 0, 0, width); CHECK_END(width / 2 * sizeof(double), op->weight_nbytes); break;
    case ROPE: check_row_of(op, t, op->n_heads * op->head_dim, width, op->n_heads * op->head_dim); CHECK_END(width, op->head_dim); break;
    case STORE_KV: check_store(p, op, t); break;
    case PACK: check_row_of(op, t, width, 0, 0); CHECK_END(count * activation_nbytes(op->activation, width), op->out_nbytes); break;
    case ROUTE: check_row_of(op, t, width, 0, width); CHECK_END(op->n_used, width); break;
    case PACK_SLOTS:
        check_slots(op->slots, op->slots_nbytes, count, op->n_experts, op->n_used);
        check_row_of(op, t, (op->shared ? 1 : op->n_used) * width, 0, 0);
        CHECK_END(count * op->n_used * activation_nbytes(op->activation, width), op->out_nbytes);
        break;
    case EXPERT_SUM:
        check_slots(op->slots, op->slots_nbytes, count, op->n_experts, op->n_used);
        check_row_of(op, t, op->n_used * width, op->n_experts, width);
        break;
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
    CHECK_END(T * op->n_experts * sizeof(float), op->routing_nbytes);
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
