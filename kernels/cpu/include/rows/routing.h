/* Which experts a row goes to, how much each counts, and the sum of what they made.
 * Contracts: ollama_zmq/ops/choose_experts.py, expert_shares.py, expert_sum.py.
 */
#ifndef OLLAMA_ROUTING_H
#define OLLAMA_ROUTING_H

#include "rows/activations.h"
#include "rows/lines.h"
#include "rows/slots.h"

/* exp(logits - peak) over their sum, which stands in 16 lanes: a NaN or +inf makes all of them NaN. */
static inline void softmax_row(const float *logits, float *out, size_t X)
{
    float peak = logits[0];
    f32 sum = f32_zero();
    for (size_t e = 1; e < X; e++) peak = logits[e] > peak ? logits[e] : peak;
    for (size_t e = 0; e < X; e += 16) {
        int n = line_length(e, X);
        f32 share = f32_exp(f32_sub(line_load(logits + e, n), f32_set(peak)));
        sum = f32_add(sum, n == 16 ? share : f32_first(n, share, f32_zero()));
        line_store(out + e, share, n);
    }
    f32 total = f32_set(f32_sum_lanes(sum));
    for (size_t e = 0; e < X; e += 16) {
        int n = line_length(e, X);
        line_store(out + e, f32_div(line_load(out + e, n), total), n);
    }
}

static inline void scores_of_row(enum expert_scores scores, const float *logits, float *out, size_t X)
{
    if (scores == SCORES_softmax) {
        softmax_row(logits, out, X);
        return;
    }
    for (size_t e = 0; e < X; e += 16) {
        int n = line_length(e, X);
        f32 x = line_load(logits + e, n);
        line_store(out + e, scores == SCORES_sigmoid ? apply_sigmoid(x) : f32_softplus(x), n);
    }
    for (size_t e = 0; e < X && scores == SCORES_sqrt_softplus; e++) out[e] = sqrtf(out[e]);
}

static inline int is_better(float a, float b) { return a > b || (isnan(b) && !isnan(a)); }

/* Of those that are 0 in chosen, the n_used of the largest marks become 1, the lowest numbers among equals; NaNs come last. */
static inline void choose(const float *marks, float *chosen, size_t count, size_t n_used)
{
    int32_t best[MAX_EXPERTS];
    size_t found = 0;
    for (size_t e = 0; e < count; e++) {
        if (chosen[e] || (found == n_used && !is_better(marks[e], marks[best[found - 1]]))) continue;
        size_t at = found < n_used ? found++ : found - 1;
        for (; at && is_better(marks[e], marks[best[at - 1]]); at--) best[at] = best[at - 1];
        best[at] = (int32_t)e;
    }
    for (size_t i = 0; i < found; i++) chosen[best[i]] = 1;
}

static inline float sum_of_two_best(const float *marks, size_t count)
{
    float first = marks[0], second = NAN;
    for (size_t e = 1; e < count; e++) {
        if (is_better(marks[e], first)) second = first, first = marks[e];
        else if (is_better(marks[e], second)) second = marks[e];
    }
    return count > 1 ? first + second : first;
}

/* -1 for the experts of the groups that are not among the best, 0 for others. */
static inline void close_groups(const float *marks, float *chosen, size_t X, size_t n_groups, size_t n_used)
{
    float group_marks[MAX_EXPERTS], open[MAX_EXPERTS] = {0};
    for (size_t g = 0, size = X / n_groups; g < n_groups; g++) group_marks[g] = sum_of_two_best(marks + g * size, size);
    choose(group_marks, open, n_groups, n_used);
    for (size_t e = 0; e < X; e++) chosen[e] = open[e / (X / n_groups)] - 1;
}

static void row_choose_experts(const struct row_op *op, const struct row *row)
{
    size_t X = op->width, n_used = (size_t)op->numbers[0], n_groups = (size_t)op->numbers[1];
    const float *marks = row->a, *bias = op->weights[0].at;
    float scores[MAX_EXPERTS];
    memset(row->out, 0, X * sizeof *row->out);
    if (bias || n_groups > 1) {
        scores_of_row((enum expert_scores)op->choice, row->a, scores, X);
        for (size_t e = 0; e < X && bias; e++) scores[e] += bias[e];
        marks = scores;
    }
    if (n_groups > 1) close_groups(marks, row->out, X, n_groups, (size_t)op->numbers[2]);
    choose(marks, row->out, X, n_used);
    for (size_t e = 0; e < X; e++) row->out[e] = row->out[e] > 0 ? 1 : 0;
}

static void row_expert_shares(const struct row_op *op, const struct row *row)
{
    size_t X = op->a_width, J = op->width;
    const float *weight = op->weights[0].at;
    float scores[MAX_EXPERTS], total = 0;
    int32_t experts[MAX_EXPERTS];
    scores_of_row((enum expert_scores)op->choice, row->a, scores, X);
    slots_of_row(row->b, X, J, experts);
    for (size_t j = 0; j < J; j++) total += row->out[j] = scores[experts[j]];
    if (total < 0x1p-14f) total = 0x1p-14f;
    for (size_t j = 0; j < J; j++) {
        float share = op->numbers[1] ? row->out[j] / total : row->out[j];
        row->out[j] = share * (float)op->numbers[2] * (weight ? weight[experts[j]] : 1.0f);
    }
}

static void row_expert_sum(const struct row_op *op, const struct row *row)
{
    for (size_t d = 0; d < op->width; d += 16) {
        int n = line_length(d, op->width);
        f32 total = f32_zero();
        for (size_t j = 0; j < op->b_width; j++)
            total = f32_fma(f32_set(row->b[j]), line_load(row->a + j * op->width + d, n), total);
        line_store(row->out + d, total, n);
    }
}

#endif
