/* One row of logits, float32 [V], in lanes: what top.h and the sampler ask of all V. */
#ifndef OLLAMA_LOGITS_H
#define OLLAMA_LOGITS_H

#include "kernels.h"

/* The largest of every n_columns-th logit; a NaN is passed over. Returns the bits of the largest magnitude: above those of infinity
 * there is a NaN. n_columns is a multiple of 16 and at most V. */
static uint32_t column_maxima(
    const float *logits,    /* in  [V] */
    size_t V,
    float *maxima,          /* out [n_columns] */
    size_t n_columns)
{
    i32 bits = i32_zero(), magnitude = i32_set(0x7fffffff);
    float last[LANES] = {0};
    for (size_t c = 0; c < n_columns; c++) maxima[c] = -INFINITY;
    size_t i = 0, c = 0;
    for (; i + 16 <= V; i += 16, c = c + 16 < n_columns ? c + 16 : 0) {
        f32 x = f32_load(logits + i);
        bits = i32_max(bits, i32_and(i32_bits(x), magnitude));
        f32_store(maxima + c, f32_max(x, f32_load(maxima + c)));
    }
    for (int l = 0; i < V; i++, l++, c++) {
        last[l] = logits[i];
        if (logits[i] > maxima[c]) maxima[c] = logits[i];
    }
    return (uint32_t)i32_max_lane(i32_max(bits, i32_and(i32_bits(f32_load(last)), magnitude)));
}

/* The ids of all logits above least and of the first n_equal that equal it, rising. Returns how many. Blocks of 64 without any are
 * told by one maximum. */
static size_t find_from(
    const float *logits,    /* in  [V] */
    size_t V,
    float least,
    size_t n_equal,
    int32_t *ids)           /* out */
{
    size_t found = 0;
    for (size_t i = 0; i < V; i += 64) {
        size_t end = i + 64 < V ? i + 64 : V;
        if (end == i + 64) {
            f32 low = f32_max(f32_load(logits + i), f32_load(logits + i + 16));
            f32 high = f32_max(f32_load(logits + i + 32), f32_load(logits + i + 48));
            if (f32_max_lane(f32_max(low, high)) < least) continue;
        }
        for (size_t j = i; j < end; j++)
            if (logits[j] > least || (logits[j] == least && n_equal && n_equal--)) ids[found++] = (int32_t)j;
    }
    return found;
}

/* The sum of exp((logits - peak) * scale), none of them above 1: in 16 lanes over 1024 logits, in double over those sums. Within 2e-7 of
 * the sum in float64 where scale is 1. */
static double exp_sum(const float *logits, size_t V, float peak, float scale)
{
    f32 top = f32_set(peak), factor = f32_set(scale), none = f32_set(-INFINITY);
    double total = 0;
    for (size_t i = 0; i < V; i += 1024) {
        f32 sum = f32_zero();
        for (size_t j = i; j < i + 1024 && j < V; j += 16) {
            int n = V - j < 16 ? (int)(V - j) : 16;
            f32 x = n == 16 ? f32_load(logits + j) : f32_first(n, f32_load_first(logits + j, n), none);
            sum = f32_add(sum, f32_exp(f32_mul(f32_sub(x, top), factor)));
        }
        total += f32_sum_lanes(sum);
    }
    return total;
}

#endif
