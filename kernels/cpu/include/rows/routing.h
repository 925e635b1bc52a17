/* Which experts a row goes to, and what is done with their rows. Contracts: ollama_zmq/ops/route.py, expert_sum.py. */
#ifndef OLLAMA_ROUTING_H
#define OLLAMA_ROUTING_H

#include "rows/lines.h"

/* The n_used largest logits, the lowest number among equals; NaNs come last. Chosen ones become 1, others 0. */
static inline void choose(const float *logits, float *chosen, size_t n_experts, size_t n_used)
{
    memset(chosen, 0, n_experts * sizeof *chosen);
    for (size_t j = 0; j < n_used; j++) {
        size_t best = n_experts;
        for (size_t e = 0; e < n_experts; e++)
            if (!chosen[e] && (best == n_experts || logits[e] > logits[best] || (isnan(logits[best]) && !isnan(logits[e])))) best = e;
        chosen[best] = 1;
    }
}

/* exp(logits - peak) of up to 16 experts, 0 behind. */
static inline f32 expert_shares(const float *logits, float peak, int n)
{
    return f32_first(n, f32_exp(f32_sub(f32_load_first(logits, n), f32_set(peak))), f32_zero());
}

/* Both sums stand in 16 lanes; a NaN among all shares becomes one of the total, whichever share it is. */
static void row_route(const struct row_op *op, const struct row *row)
{
    const float *logits = row->a;
    float *routing = row->out;
    size_t n_experts = op->width, n_used = op->n_used;
    float peak = logits[0];
    f32 all = f32_zero(), some = f32_zero();
    choose(logits, routing, n_experts, n_used);
    for (size_t e = 1; e < n_experts; e++) peak = logits[e] > peak ? logits[e] : peak;
    for (size_t e = 0; e < n_experts; e += 16) {
        int n = n_experts - e < 16 ? (int)(n_experts - e) : 16;
        f32 share = expert_shares(logits + e, peak, n);
        float lane[LANES];
        f32_store(lane, share);
        for (int i = 0; i < n; i++) routing[e + i] = routing[e + i] ? lane[i] : 0;
        all = f32_add(all, share);
        some = f32_add(some, f32_load_first(routing + e, n));
    }
    float sum = f32_sum_lanes(all), total = op->choice == 0 ? sum : f32_sum_lanes(some) + 0.0f * sum;
    for (size_t e = 0; e < n_experts; e++) routing[e] = routing[e] ? routing[e] / total : 0;
}

static void row_expert_sum(const struct row_op *op, const struct row *row)
{
    for (size_t d = 0; d < op->width; d += 16) {
        int n = line_length(d, op->width);
        f32 total = f32_zero();
        for (size_t j = 0; j < op->n_used; j++)
            total = f32_fma(f32_set(row->b[row->experts[j]]), line_load(row->a + j * op->width + d, n), total);
        line_store(row->out + d, total, n);
    }
}

#endif
