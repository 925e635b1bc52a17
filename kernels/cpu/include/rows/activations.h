/* Activation functions, with a gate and without. Contracts: ollama_zmq/ops/activation.py, gated.py, swiglu_clamped.py, xielu.py.
 *
 * The function is an argument of a loop that is compiled once for each. A NaN stays one everywhere.
 */
#ifndef OLLAMA_ACTIVATIONS_ROWS_H
#define OLLAMA_ACTIVATIONS_ROWS_H

#include "rows/lines.h"

static inline f32 one_plus_exp_of_minus(f32 x) { return f32_add(f32_set(1.0f), f32_exp(f32_sub(f32_zero(), x))); }
static inline f32 apply_silu(f32 x) { return f32_div(x, one_plus_exp_of_minus(x)); }
static inline f32 apply_sigmoid(f32 x) { return f32_div(f32_set(1.0f), one_plus_exp_of_minus(x)); }
static inline f32 apply_relu(f32 x) { return f32_max(f32_zero(), x); }
static inline f32 apply_relu2(f32 x) { return f32_mul(apply_relu(x), apply_relu(x)); }
static inline f32 apply_softplus(f32 x) { return f32_softplus(x); }

/* 0.5 x (1 + tanh u) = x / (1 + exp(-2u)), which loses nothing far below zero. */
static inline f32 apply_gelu_tanh(f32 x)
{
    f32 cubic = f32_fma(f32_mul(x, x), f32_set(0.044715f), f32_set(1.0f));
    return f32_div(x, one_plus_exp_of_minus(f32_mul(f32_mul(x, f32_set(0x1.988454p+0f)), cubic)));
}

/* x (1 - erfc(x / sqrt 2) / 2) above zero and x erfc(-x / sqrt 2) / 2 below: max(x, 0) - |x| erfc(|x| / sqrt 2) / 2. */
static inline f32 apply_gelu_erf(f32 x)
{
    f32 size = f32_abs(x), tail = f32_mul(f32_set(0.5f), f32_erfc(f32_mul(size, f32_set(0x1.6a09e6p-1f))));
    return f32_neg_fma(size, tail, apply_relu(x));
}

#define APPLY(name, loop) case ACTIVATION_##name: loop(op, row, apply_##name); break;

ALWAYS_INLINE void activate(const struct row_op *op, const struct row *row, f32 (*function)(f32))
{
    EACH_LINE(op, row, function(x))
}

static void row_activation(const struct row_op *op, const struct row *row)
{
    switch ((enum activation_function)op->choice) { ACTIVATIONS(APPLY, activate) }
}

static inline f32 itself(f32 x) { return x; }

/* A number of the gate stands for head_dim numbers of the row. */
ALWAYS_INLINE void gate(const struct row_op *op, const struct row *row, f32 (*function)(f32))
{
    size_t E = op->head_dim, heads = E == 1 ? 0 : op->width / E;
    for (size_t d = 0; d < op->width && E == 1; d += 16) {
        int n = line_length(d, op->width);
        line_store(row->out + d, f32_mul(function(line_load(row->a + d, n)), line_load(row->b + d, n)), n);
    }
    for (size_t h = 0; h < heads; h++) {
        f32 factor = function(f32_set(row->a[h]));
        for (size_t d = 0; d < E; d += 16) {
            int n = line_length(d, E);
            line_store(row->out + h * E + d, f32_mul(factor, line_load(row->b + h * E + d, n)), n);
        }
    }
}

static void row_gated(const struct row_op *op, const struct row *row)
{
    switch ((enum activation_function)op->choice) { ACTIVATIONS(APPLY, gate) }
}

static void row_mul(const struct row_op *op, const struct row *row) { gate(op, row, itself); }

static inline f32 clamped(f32 x, f32 limit) { return f32_min(limit, f32_max(f32_sub(f32_zero(), limit), x)); }

static void row_swiglu_clamped(const struct row_op *op, const struct row *row)
{
    f32 alpha = f32_set((float)op->numbers[0]), limit = f32_set((float)op->numbers[1]), one = f32_set(1.0f);
    for (size_t d = 0; d < op->width; d += 16) {
        int n = line_length(d, op->width);
        f32 gate = f32_min(limit, line_load(row->a + d, n)), up = clamped(line_load(row->b + d, n), limit);
        line_store(row->out + d, f32_mul(f32_div(gate, one_plus_exp_of_minus(f32_mul(alpha, gate))), f32_add(up, one)), n);
    }
}

static void row_xielu(const struct row_op *op, const struct row *row)
{
    f32 alpha_p = f32_set((float)op->numbers[0]), alpha_n = f32_set((float)op->numbers[1]), beta = f32_set((float)op->numbers[2]);
    f32 eps = f32_set((float)op->numbers[3]);
    EACH_LINE(op, row, f32_fma(beta, x, f32_where_less(f32_zero(), x, f32_mul(f32_mul(alpha_p, x), x),
                                                       f32_mul(alpha_n, f32_sub(f32_expm1(f32_min(eps, x)), x)))))
}

#endif
