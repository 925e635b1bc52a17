/* Rotary embedding. Contract: ollama_zmq/ops/rope.py. */
#ifndef OLLAMA_ROPE_H
#define OLLAMA_ROPE_H

#include "rows/table.h"

/* Turn pairs of every head of a by the angles of one position, b = [2, rotary_dim / 2]: cosines, sines. Each product of the second
 * term is rounded, then fused with the first. out may be a. */
static void row_rope(const struct row_op *op, const struct row *row)
{
    size_t rotary_dim = op->b_width, pairs = rotary_dim / 2, halves = op->choice == 1;
    size_t to_first = halves ? 1 : 2, to_second = halves ? pairs : 1;
    const float *cosine = row->b, *sine = row->b + pairs;
    for (size_t d = 0; d < op->width; d += op->head_dim) {
        const float *x = row->a + d;
        float *out = row->out + d;
        for (size_t i = 0; i < pairs; i++) {
            float a = x[i * to_first], b = x[i * to_first + to_second];
            out[i * to_first] = fmaf(a, cosine[i], -(b * sine[i]));
            out[i * to_first + to_second] = fmaf(a, sine[i], b * cosine[i]);
        }
        if (out != x) memcpy(out + rotary_dim, x + rotary_dim, (op->head_dim - rotary_dim) * sizeof *x);
    }
}

#endif
