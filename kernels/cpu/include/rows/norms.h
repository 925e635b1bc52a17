/* Norms over a row or over each of its heads. Contracts: ollama_zmq/ops/rms_norm.py, layer_norm.py, l2_norm.py.
 *
 * Sums stand in 16 lanes, lane l adding x[l], x[l + 16] ...; one lane alone would be too coarse at D = 8192. A head is read whole
 * before it is written, so out may be x.
 */
#ifndef OLLAMA_NORMS_H
#define OLLAMA_NORMS_H

#include "rows/lines.h"

static inline float sum_of_squares(const float *x, size_t D)
{
    f32 squares = f32_zero();
    for (size_t d = 0; d < D; d += 16) {
        f32 part = line_load(x + d, line_length(d, D));
        squares = f32_fma(part, part, squares);
    }
    return f32_sum_lanes(squares);
}

/* The op's n-th vector where head `first` / head_dim begins, or NULL: it is a head's and used for each, or a row's. */
static inline const float *vector_at(const struct row_op *op, int n, size_t first)
{
    const struct row_weight *weight = &op->weights[n];
    return weight->at ? (const float *)weight->at + (weight->count == op->head_dim ? 0 : first) : NULL;
}

static inline f32 line_times(f32 x, const float *weight, size_t d, int n)
{
    return weight ? f32_mul(x, line_load(weight + d, n)) : x;
}

/* out[d] = x[d] * scale * weight[d] */
static inline void scale_head(const float *x, float scale, const float *weight, float *out, size_t D)
{
    f32 by = f32_set(scale);
    for (size_t d = 0; d < D; d += 16) {
        int n = line_length(d, D);
        line_store(out + d, line_times(f32_mul(line_load(x + d, n), by), weight, d, n), n);
    }
}

static void row_rms_norm(const struct row_op *op, const struct row *row)
{
    size_t E = op->head_dim;
    for (size_t d = 0; d < op->width; d += E) {
        float scale = 1.0f / sqrtf(sum_of_squares(row->a + d, E) / (float)E + (float)op->numbers[0]);
        scale_head(row->a + d, scale, vector_at(op, 0, d), row->out + d, E);
    }
}

/* x - mean, 0 in the lanes from n on. */
static inline f32 centred(const float *x, f32 mean, int n)
{
    f32 c = f32_sub(line_load(x, n), mean);
    return n == 16 ? c : f32_first(n, c, f32_zero());
}

/* The variance is taken of what is left when the mean is known. */
static void layer_norm_head(const float *x, const float *weight, const float *bias, float *out, size_t D, float eps)
{
    f32 sum = f32_zero(), squares = f32_zero();
    for (size_t d = 0; d < D; d += 16) sum = f32_add(sum, line_load(x + d, line_length(d, D)));
    f32 mean = f32_set(f32_sum_lanes(sum) / (float)D);
    for (size_t d = 0; d < D; d += 16) {
        f32 c = centred(x + d, mean, line_length(d, D));
        squares = f32_fma(c, c, squares);
    }
    f32 scale = f32_set(1.0f / sqrtf(f32_sum_lanes(squares) / (float)D + eps));
    for (size_t d = 0; d < D; d += 16) {
        int n = line_length(d, D);
        f32 normed = line_times(f32_mul(centred(x + d, mean, n), scale), weight, d, n);
        line_store(out + d, bias ? f32_add(normed, line_load(bias + d, n)) : normed, n);
    }
}

static void row_layer_norm(const struct row_op *op, const struct row *row)
{
    for (size_t d = 0; d < op->width; d += op->head_dim)
        layer_norm_head(row->a + d, vector_at(op, 0, d), vector_at(op, 1, d), row->out + d, op->head_dim, (float)op->numbers[0]);
}

static void row_l2_norm(const struct row_op *op, const struct row *row)
{
    for (size_t d = 0; d < op->width; d += op->head_dim) {
        float length = sqrtf(sum_of_squares(row->a + d, op->head_dim)), eps = (float)op->numbers[0];
        scale_head(row->a + d, 1.0f / (length < eps ? eps : length), NULL, row->out + d, op->head_dim);
    }
}

#endif
