/* One token's activations into its column of a panel: see activations.h. Written in lanes. */
#ifndef OLLAMA_QUANTIZE_H
#define OLLAMA_QUANTIZE_H

#include "formats/activations.h"

#define SMALLEST_SCALED 0x1p-100f       /* below this 127 / max|x| may overflow; such a block counts as zeros */

/* The larger magnitude as an integer: ordered like the floats, with infinity and NaN above all. */
static inline i32 magnitude_bits(i32 largest, f32 x)
{
    return i32_max(largest, i32_and(i32_bits(x), i32_set(0x7fffffff)));
}

static inline float inverse_scale(float largest)
{
    return largest > SMALLEST_SCALED ? 127.0f / largest : 0.0f;
}

/* x, or zeros in a block with a NaN or an infinity: its scale says so already, and the sums of such values would overflow. */
static inline f32 if_finite(float largest, f32 x)
{
    return largest < INFINITY ? x : f32_zero();
}

static inline int32_t quantize_16(f32 x, f32 inverse, int8_t *q)
{
    i32 rounded = i32_round(f32_mul(x, inverse));
    i8_store(q, rounded);
    return i32_sum_lanes(rounded);
}

static inline void quantize_32(const float *x, struct x32 *out)
{
    f32 low = f32_load(x), high = f32_load(x + 16);
    float largest = float_of_bits((uint32_t)i32_max_lane(magnitude_bits(magnitude_bits(i32_zero(), low), high)));
    f32 inverse = f32_set(inverse_scale(largest));
    int32_t sum = quantize_16(if_finite(largest, low), inverse, out->q);
    sum += quantize_16(if_finite(largest, high), inverse, out->q + 16);
    out->scale = largest / 127.0f;
    out->scaled_sum = out->scale * (float)sum;
    out->start8 = -8 * sum;
    out->start16 = -16 * sum;
    out->start128 = -128 * sum;
}

static inline void quantize_256(const float *x, struct x256 *out)
{
    i32 bits = i32_zero();
    for (int i = 0; i < 16; i++) bits = magnitude_bits(bits, f32_load(x + 16 * i));
    float largest = float_of_bits((uint32_t)i32_max_lane(bits));
    f32 inverse = f32_set(inverse_scale(largest));
    int32_t sums[16];
    for (int i = 0; i < 16; i++) sums[i] = quantize_16(if_finite(largest, f32_load(x + 16 * i)), inverse, out->q + 16 * i);
    for (int i = 0; i < 16; i++) out->start32[i] = -32 * sums[i];
    for (int i = 0; i < 16; i++) out->sums16[i] = (int16_t)sums[i];
    for (int j = 0; j < 8; j++) {
        int32_t sum = sums[2 * j] + sums[2 * j + 1];
        out->sums[j] = (int16_t)sum;
        out->start4[j] = -4 * sums[2 * j];
        out->start128[j] = -128 * sum;
    }
    out->scale = largest / 127.0f;
}

static void pack_activation(
    enum activation kind,
    const float *x,         /* in  [K] */
    size_t K,
    struct column column,
    void *panels)           /* out, only this column */
{
    char *panel = (char *)panels + column.first * activation_nbytes(kind, K);
    if (kind == X_FLOAT) {
        float *out = (float *)panel + column.place;
        for (size_t k = 0; k < K; k++, out += column.columns) *out = x[k];
    } else if (kind == X_32) {
        struct x32 *out = (struct x32 *)panel + column.place;
        for (size_t k = 0; k < K; k += 32, out += column.columns) quantize_32(x + k, out);
    } else {
        struct x256 *out = (struct x256 *)panel + column.place;
        for (size_t k = 0; k < K; k += 256, out += column.columns) quantize_256(x + k, out);
    }
}

#endif
