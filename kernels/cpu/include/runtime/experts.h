/* Which rows go to which expert, and linears over stacks of experts. Contracts: ollama_zmq/ops/expert_linear.py, linear_per_head.py.
 *
 * A slot is one expert of one row: slot t * n_used + j. Columns are the slots in another order, expert by expert and each expert's
 * rows rising, so that an expert is a mat-mul of its own over the columns first[e]..first[e + 1] - 1: its weights are read once,
 * whatever the number of its rows, and those of an expert without rows never. Since a column's bits do not depend on its panel
 * (linear.h), a row's do not depend on who else uses its experts.
 */
#ifndef OLLAMA_EXPERTS_H
#define OLLAMA_EXPERTS_H

#include "kernels.h"
#include "rows/slots.h"

/* A table of int32 behind one address, for T rows; made by gather_slots, read by all threads after a barrier. */
struct slots {
    int32_t *used_count;    /* [1] */
    int32_t *used;          /* [n_experts], the first used_count are experts that have columns */
    int32_t *first;         /* [n_experts + 1], first column of each expert */
    int32_t *expert;        /* [T * n_used], of each slot */
    int32_t *column;        /* [T * n_used], of each slot */
    int32_t *slot;          /* [T * n_used], of each column */
};

static inline struct slots slots_at(void *table, size_t T, size_t n_experts, size_t n_used)
{
    int32_t *used = (int32_t *)table + 1, *first = used + n_experts, *expert = first + n_experts + 1, *column = expert + T * n_used;
    return (struct slots){table, used, first, expert, column, column + T * n_used};
}

static inline size_t slots_nbytes(size_t T, size_t n_experts, size_t n_used)
{
    return (2 * n_experts + 2 + 3 * T * n_used) * sizeof(int32_t);
}

/* chosen [T, n_experts], or NULL where every row uses all: the heads of linear_per_head. */
struct gather_op { const float *chosen; void *slots; size_t n_experts, n_used, chosen_nbytes, slots_nbytes; };

/* Sort the slots of T rows by expert: counted, then laid down from the last, so that first[] ends as what it says. */
static void gather_slots(const float *chosen, size_t T, size_t n_experts, size_t n_used, void *table)
{
    struct slots s = slots_at(table, T, n_experts, n_used);
    int32_t used = 0;
    memset(s.first, 0, (n_experts + 1) * sizeof *s.first);
    for (size_t i = 0; i < T * n_used; i++) s.expert[i] = (int32_t)(i % n_used);
    for (size_t t = 0; t < T && chosen; t++) slots_of_row(chosen + t * n_experts, n_experts, n_used, s.expert + t * n_used);
    for (size_t i = 0; i < T * n_used; i++) s.first[s.expert[i]]++;
    for (size_t e = 0; e < n_experts; e++) {
        if (s.first[e]) s.used[used++] = (int32_t)e;
        s.first[e + 1] += s.first[e];
    }
    *s.used_count = used;
    for (size_t i = T * n_used; i-- > 0;) {
        s.column[i] = --s.first[s.expert[i]];
        s.slot[s.column[i]] = (int32_t)i;
    }
}

/* Where a slot's column stands: the bytes before its expert's panels, and its place among those. */
static inline struct column column_of_slot(const struct slots *s, size_t i, size_t panel_columns, size_t *before)
{
    size_t first = (size_t)s->first[s->expert[i]], end = (size_t)s->first[s->expert[i] + 1];
    *before = first;
    return column_of((size_t)s->column[i] - first, end - first, panel_columns);
}

/* One weight of a step, or a stack of one for each expert. Its slots are looked up when it runs. */
struct linear_part {
    const void *weight, *x;
    float *out;
    enum format format;
    size_t N, K, groups;
    void *slots;                /* of a stack, as what follows */
    size_t n_experts, n_used;
    size_t weight_nbytes, x_nbytes, out_nbytes, slots_nbytes;   /* what was planned: read by checks.h */
};

/* The groups first..first + n of the experts in use, expert by expert. */
static void run_expert_groups(
    const struct kernels *k, const struct linear_part *part, const struct slots *s, size_t first, size_t n)
{
    size_t expert_nbytes = part->groups * GROUP_ROWS * row_nbytes(part->format, part->K);
    size_t column_nbytes = activation_nbytes(format_infos[part->format].x, part->K);
    while (n) {
        size_t e = (size_t)s->used[first / part->groups], g = first % part->groups, begin = (size_t)s->first[e];
        size_t own = part->groups - g < n ? part->groups - g : n;
        struct linear_job job = {
            .weight = (const char *)part->weight + e * expert_nbytes,
            .x = (const char *)part->x + begin * column_nbytes,
            .out = part->out,
            .K = part->K,
            .N = part->N,
            .T = (size_t)s->first[e + 1] - begin,
            .rows = s->slot + begin,
            CHECKED(.weight_nbytes = expert_nbytes, .x_nbytes = part->x_nbytes - begin * column_nbytes, )
            CHECKED(.out_rows = part->out_nbytes / (part->N * sizeof(float)), )
        };
        k->linear[part->format](&job, g, g + own);
        first += own;
        n -= own;
    }
}

#endif
