/* A compiled program and the loop that runs it on a pool: steps with a barrier between them.
 *
 *   rows         a chain of ops on one row at a time; a thread takes rows and runs the whole chain on each
 *   linear       one or more weights at once, in chunks of 16-row groups
 *   attention    blocks of query columns; where contexts are long and blocks few, their KV splits, which are joined after a barrier
 *   gather       which slots go to which expert (experts.h), on one thread
 *   experts      like linear, over the experts in use
 *
 * Every address stands in the steps; only what changes from run to run is in a pass.
 */
#ifndef OLLAMA_PROGRAM_H
#define OLLAMA_PROGRAM_H

#include "packing/unpack.h"
#include "rows/angles.h"
#include "runtime/attend.h"
#include "runtime/checks.h"
#include "runtime/experts.h"
#include "runtime/steps.h"

static void run_copy(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    size_t nbytes = op->width * sizeof(float);
    memcpy((float *)op->out + t * op->width, p->pass.input + t * nbytes, nbytes);
}

static void run_embed(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    unpack_row(op->format, op->weights[0].at, op->width, looked_up_at(p, op, t), (float *)op->out + t * op->width);
}

static void run_take_rows(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    memcpy((float *)op->out + t * op->width, op->a + p->pass.rows[t] * op->width, op->width * sizeof(float));
}

static void run_angles(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    rope_table(p->pass.positions[t], op->weights[0].at, op->numbers[0], op->width / 2, (float *)op->out + t * op->width);
}

static void run_store_kv(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    const struct kv_head *head = &op->head;
    size_t slot = (size_t)p->pass.positions[t] % PAGE_SLOTS;
    for (size_t g = 0; g < op->n_heads; g++) {
        char *page = page_of(op->out, p->pass.pages[t], g, op->n_heads, head);
        p->kernels->store_keys[head->type](op->a + (t * op->n_heads + g) * head->keys, page, slot, head->keys);
        p->kernels->store_values[head->type](op->b + (t * op->n_heads + g) * head->values, page + keys_nbytes(head), slot, head->values);
    }
}

static void run_pack(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    struct column column = column_of(t, count, p->kernels->panel_columns);
    p->kernels->pack_activation(op->activation, op->a + t * op->width, op->width, column, op->out);
}

/* A row's slots into the panels of their experts. */
static void run_pack_slots(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    struct slots s = slots_at(op->slots, count, op->n_experts, op->n_used);
    size_t K = op->width, before;
    for (size_t j = 0, i = t * op->n_used; j < op->n_used; j++, i++) {
        struct column column = column_of_slot(&s, i, p->kernels->panel_columns, &before);
        char *panels = (char *)op->out + before * activation_nbytes(op->activation, K);
        p->kernels->pack_activation(op->activation, op->a + (op->shared ? t : i) * K, K, column, panels);
    }
}

static void run_expert_bias(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    size_t J = (size_t)op->numbers[0], N = op->width / J;
    const float *x = op->a + t * op->width;
    float *out = (float *)op->out + t * op->width;
    int32_t experts[MAX_EXPERTS];
    slots_of_row(op->b + t * op->b_width, op->b_width, J, experts);
    for (size_t j = 0; j < J; j++) unpack_row(op->format, op->weights[0].at, N, (size_t)experts[j], out + j * N);
    for (size_t i = 0; i < op->width; i++) out[i] += x[i];
}

static void run_lanes(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    struct row row = {op->a + t * op->a_width, op->b + t * op->b_width, (float *)op->out + t * op->width};
    row.position = p->pass.positions[t];
    p->kernels->rows[op->kind](op, &row);
}

#define RUN_ROW(name) case ROW_##name: run_##name(p, op, t, count); break;

static void run_row(const struct program *p, const struct row_op *op, size_t t, size_t count)
{
    check_row(p, op, t, count);
    switch (op->kind) {
    PASS_ROWS(RUN_ROW)
    default: run_lanes(p, op, t, count);
    }
}

static size_t rows_of(const struct program *p, const struct step *step)
{
    return step->counts_rows ? p->pass.R : p->pass.T;
}

static void run_rows(const struct program *p, const struct step *step, int thread)
{
    size_t count = rows_of(p, step);
    long first, n, chunk = (long)count / (p->pool->threads * 4);
    while ((n = pool_take(p->pool, thread, (long)count, chunk < 1 ? 1 : chunk, &first)))
        for (long t = first; t < first + n; t++)
            for (int i = 0; i < step->count; i++) run_row(p, &step->rows[i], (size_t)t, count);
}

/* The groups first..first + n of all parts in a row. */
static void run_groups(const struct program *p, const struct step *step, size_t first, size_t n)
{
    for (const struct linear_part *part = step->parts; n; first -= part->groups, part++) {
        if (first >= part->groups) continue;
        size_t own = part->groups - first < n ? part->groups - first : n;
        struct linear_job job = {
            .weight = part->weight,
            .x = part->x,
            .out = part->out,
            .K = part->K,
            .N = part->N,
            .T = rows_of(p, step),
            CHECKED(.weight_nbytes = part->weight_nbytes, .x_nbytes = part->x_nbytes, )
            CHECKED(.out_rows = part->out_nbytes / (part->N * sizeof(float)), )
        };
        p->kernels->linear[part->format](&job, first, first + own);
        first += own;
        n -= own;
    }
}

static void run_linear(const struct program *p, const struct step *step, int thread)
{
    long groups = 0, first, n;
    if (!rows_of(p, step)) return;
    for (int i = 0; i < step->count; i++) {
        check_linear(&step->parts[i], rows_of(p, step));
        groups += (long)step->parts[i].groups;
    }
    long chunk = groups / (p->pool->threads * 4);
    while ((n = pool_take(p->pool, thread, groups, chunk < 1 ? 1 : chunk, &first))) run_groups(p, step, (size_t)first, (size_t)n);
}

static void run_gather(const struct program *p, const struct step *step, int thread)
{
    const struct gather_op *op = &step->gather;
    check_gather(op, rows_of(p, step));
    if (thread == 0) gather_slots(op->chosen, rows_of(p, step), op->n_experts, op->n_used, op->slots);
}

static void run_experts(const struct program *p, const struct step *step, int thread)
{
    size_t T = rows_of(p, step);
    long units = 0, taken, n, own;
    if (!T) return;
    for (const struct linear_part *part = step->parts; part < step->parts + step->count; part++) {
        check_experts(part, T);
        units += (long)part->groups * *slots_at(part->slots, T, part->n_experts, part->n_used).used_count;
    }
    long chunk = units / (p->pool->threads * 8);
    while ((n = pool_take(p->pool, thread, units, chunk < 1 ? 1 : chunk, &taken)))
        for (const struct linear_part *part = step->parts; n; taken -= own, part++) {
            struct slots s = slots_at(part->slots, T, part->n_experts, part->n_used);
            own = (long)part->groups * *s.used_count;
            if (taken >= own) continue;
            long here = own - taken < n ? own - taken : n;
            run_expert_groups(p->kernels, part, &s, (size_t)taken, (size_t)here);
            taken += here;
            n -= here;
        }
}

static void run_steps(void *context, int thread)
{
    const struct program *p = context;
    for (int i = 0; i < p->count; i++) {
        const struct step *step = &p->steps[i];
        if (i) pool_barrier(p->pool, thread);
        if (step->kind == ROWS_STEP)
            run_rows(p, step, thread);
        else if (step->kind == LINEAR_STEP)
            run_linear(p, step, thread);
        else if (step->kind == ATTENTION_STEP)
            run_attention(p, &step->attention, thread);
        else if (step->kind == GATHER_STEP)
            run_gather(p, step, thread);
        else
            run_experts(p, step, thread);
    }
}

static void program_run(struct program *p)
{
    pool_run(p->pool, run_steps, p);
}

#endif
