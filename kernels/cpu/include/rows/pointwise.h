/* Sums, products and limits, number by number. Contracts: ollama_zmq/ops/NAME.py of each row_NAME. */
#ifndef OLLAMA_POINTWISE_H
#define OLLAMA_POINTWISE_H

#include "rows/activations.h"
#include "rows/lines.h"

#define Y line_load(row->b + d, n)
#define WEIGHT line_load((const float *)op->weights[0].at + d, n)

static void row_add(const struct row_op *op, const struct row *row) { EACH_LINE(op, row, f32_add(x, Y)) }
static void row_add_bias(const struct row_op *op, const struct row *row) { EACH_LINE(op, row, f32_add(x, WEIGHT)) }

static void scale_row(const struct row_op *op, const struct row *row, float factor)
{
    f32 by = f32_set(factor);
    EACH_LINE(op, row, f32_mul(x, by))
}

static void row_scale(const struct row_op *op, const struct row *row) { scale_row(op, row, (float)op->numbers[0]); }

/* By one number, or by one for each channel. */
static void row_mul_weight(const struct row_op *op, const struct row *row)
{
    if (op->weights[0].count == 1) scale_row(op, row, *(const float *)op->weights[0].at);
    else EACH_LINE(op, row, f32_mul(x, WEIGHT))
}

static void row_clamp(const struct row_op *op, const struct row *row)
{
    f32 limit = f32_set((float)op->numbers[0]);
    EACH_LINE(op, row, clamped(x, limit))
}

static void row_softcap(const struct row_op *op, const struct row *row)
{
    f32 cap = f32_set((float)op->numbers[0]);
    EACH_LINE(op, row, f32_mul(cap, f32_tanh(f32_div(x, cap))))
}

/* ln of a whole number from 1 on, in double and without libm: 2^e m, m in 0.5..1, ln m = 2 atanh((m - 1) / (m + 1)). */
static inline double ln_of_whole(double whole)
{
    int e = 0;
    while (whole >= 1.0) whole *= 0.5, e++;
    double s = (whole - 1.0) / (whole + 1.0), z = s * s, sum = 0.0;
    for (int k = 37; k > 0; k -= 2) sum = sum * z + 1.0 / (double)k;
    return (double)e * 0x1.62e42fefa39efp-1 + 2.0 * s * sum;
}

static void row_scale_by_position(const struct row_op *op, const struct row *row)
{
    double position = (double)row->position + op->numbers[2];
    double steps = (double)(int64_t)(position / op->numbers[1]);
    scale_row(op, row, (float)(1.0 + op->numbers[0] * ln_of_whole(1.0 + steps)));
}

#undef Y
#undef WEIGHT
#endif
