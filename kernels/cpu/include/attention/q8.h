/* Scores and weighted values of one page of q8_0, C columns at a time.
 *
 *   query block    v = round(x * (16256 / max|x|)) of 32 values = 128 * high + low, both signed bytes
 *   score          per block  dot = (sum of k * high) * 128 + sum of k * low, an integer;  score = fma over blocks of (dot * d) * scale
 *   value          o[e] = fma over slots of (p[s] * d[s]) * v[s, e]
 *
 * Two bytes of query are four times the work of one float16 multiply-add in a quarter of the time, and their rounding (3e-5 of the
 * block's largest) stays far below that of the keys; one byte would double the error.
 */
#ifndef OLLAMA_ATTENTION_Q8_H
#define OLLAMA_ATTENTION_Q8_H

#include "attention/page.h"
#include "linear/quantize.h"

struct query_block {
    int8_t high[32], low[32];
    int32_t start_high, start_low;      /* -128 * their sums: keys have 128 added */
    float scale;
    int32_t unused;
};

_Static_assert(sizeof(struct query_block) <= 32 * sizeof(float), "fits where float32 queries do");

static inline void split_query_16(f32 x, f32 inverse, int8_t *high, int8_t *low, int32_t *high_sum, int32_t *low_sum)
{
    i32 above = i32_add(i32_round(f32_mul(x, inverse)), i32_set(128 * 128 + 64));
    i32 upper = i32_add(i32_shr(above, 7), i32_set(-128)), lower = i32_add(i32_and(above, i32_set(127)), i32_set(-64));
    i8_store(high, upper);
    i8_store(low, lower);
    *high_sum += i32_sum_lanes(upper);
    *low_sum += i32_sum_lanes(lower);
}

/* Queries of a tile: query_block [head_dim / 32][C], times scale. */
static inline void pack_query_q8(const float *q, size_t head_dim, float scale, char *tile, size_t C, size_t c)
{
    struct query_block *out = (struct query_block *)tile + c;
    for (size_t e = 0; e < head_dim; e += 32, out += C) {
        size_t n = head_dim - e;
        f32 x[2] = {f32_load_first(q + e, n < 16 ? (int)n : 16), n > 16 ? f32_load_first(q + e + 16, n < 32 ? (int)n - 16 : 16) : f32_zero()};
        for (int i = 0; i < 2; i++) x[i] = f32_mul(x[i], f32_set(scale));
        float largest = float_of_bits((uint32_t)i32_max_lane(magnitude_bits(magnitude_bits(i32_zero(), x[0]), x[1])));
        f32 inverse = f32_set(128.0f * inverse_scale(largest));
        int32_t high = 0, low = 0;
        for (int i = 0; i < 2; i++) split_query_16(if_finite(largest, x[i]), inverse, out->high + 16 * i, out->low + 16 * i, &high, &low);
        out->start_high = -128 * high;
        out->start_low = -128 * low;
        out->scale = largest / (128.0f * 127.0f);
    }
}

/* Scores of 16 * GROUPS slots from slot 16 * first of a page. They stand in memory meanwhile: registers are for integer sums. */
ALWAYS_INLINE void scores_q8(
    const int C, const int GROUPS, const struct query_block *q, size_t head_dim, const char *k, size_t first, ptrdiff_t ahead, float *p)
{
    p += first * 16;
    UNROLL for (int g = 0; g < GROUPS; g++) EACH_COLUMN(c) f32_store(p + c * PAGE_SLOTS + g * 16, f32_zero());
    for (size_t e = 0; e < head_dim; e += 32, k += Q8_BLOCK_NBYTES, q += C) {
        i32 sum[4][MOST_COLUMNS];
        u8 key[4];
        if (C <= DECODED_COLUMNS) {
            PREFETCH(k + Q8_KEYS_NBYTES + ahead);
            PREFETCH(k + Q8_KEYS_NBYTES + 64 + ahead);
        }
        UNROLL for (int g = 0; g < GROUPS; g++) EACH_COLUMN(c) sum[g][c] = i32_start128(&q[c].start_high);
        UNROLL for (int i = 0; i < 8; i++) {
            UNROLL for (int g = 0; g < GROUPS; g++) {
                key[g] = u8_load(k + (i * PAGE_SLOTS + (first + g) * 16) * 4);
                if (C <= DECODED_COLUMNS) PREFETCH(k + (i * PAGE_SLOTS + (first + g) * 16) * 4 + ahead);
            }
            EACH_COLUMN(c) UNROLL for (int g = 0; g < GROUPS; g++) sum[g][c] = i32_dot128(sum[g][c], key[g], q[c].high + 4 * i);
        }
        UNROLL for (int g = 0; g < GROUPS; g++)
            EACH_COLUMN(c) sum[g][c] = i32_add(i32_shl(sum[g][c], 7), i32_start128(&q[c].start_low));
        UNROLL for (int i = 0; i < 8; i++) {
            UNROLL for (int g = 0; g < GROUPS; g++) key[g] = u8_load(k + (i * PAGE_SLOTS + (first + g) * 16) * 4);
            EACH_COLUMN(c) UNROLL for (int g = 0; g < GROUPS; g++) sum[g][c] = i32_dot128(sum[g][c], key[g], q[c].low + 4 * i);
        }
        UNROLL for (int g = 0; g < GROUPS; g++) {
            f32 d = f32_of_half((const uint16_t *)(k + Q8_KEYS_NBYTES) + (first + g) * 16);
            EACH_COLUMN(c) {
                float *score = p + c * PAGE_SLOTS + g * 16;
                f32_store(score, f32_fma(f32_mul(f32_of_i32(sum[g][c]), d), f32_set(q[c].scale), f32_load(score)));
            }
        }
    }
}

/* As page_scores_f16. */
ALWAYS_INLINE void page_scores_q8(const int C, const char *q, size_t head_dim, const char *keys, ptrdiff_t ahead, size_t first, size_t end, float *p)
{
    const int many = C * 4 <= ACCUMULATORS ? 4 : 1;
    const struct query_block *blocks = (const struct query_block *)q;
    size_t g = first;
    for (; g + many <= end; g += many) scores_q8(C, many, blocks, head_dim, keys, g, ahead, p);
    for (; g < end; g++) scores_q8(C, 1, blocks, head_dim, keys, g, ahead, p);
}

/* As values_f16; p is [C][2][64], weights times the scales of the strip's one or two blocks, and e is even a block's start or its 16th. */
ALWAYS_INLINE void values_q8(
    const int C, const int VECTORS, const float *p, const int8_t *v, size_t width, ptrdiff_t ahead, size_t begin, size_t end, float *o, size_t stride)
{
    f32 sum[4][MOST_COLUMNS], value[4];
    UNROLL for (int i = 0; i < VECTORS; i++) EACH_COLUMN(c) sum[i][c] = f32_load(o + c * stride + 16 * i);
    for (size_t s = begin; s < end; s++, v += width) {
        if (C <= DECODED_COLUMNS) PREFETCH((const char *)v + ahead);
        UNROLL for (int i = 0; i < VECTORS; i++) value[i] = f32_of_i8(v + 16 * i);
        EACH_COLUMN(c) {
            UNROLL for (int i = 0; i < VECTORS; i++)
                sum[i][c] = f32_fma(f32_set(p[(2 * c + i / 2) * PAGE_SLOTS + s]), value[i], sum[i][c]);
        }
    }
    UNROLL for (int i = 0; i < VECTORS; i++) EACH_COLUMN(c) f32_store(o + c * stride + 16 * i, sum[i][c]);
}

ALWAYS_INLINE void scale_weights(const int C, const float *p, const uint16_t *scales, size_t blocks, ptrdiff_t ahead, float *scaled)
{
    for (size_t b = 0; b < blocks; b++)
        for (size_t g = 0; g < 4; g++) {
            if (C <= DECODED_COLUMNS && g % 2 == 0) PREFETCH((const char *)(scales + b * PAGE_SLOTS + g * 16) + ahead);
            f32 d = f32_of_half(scales + b * PAGE_SLOTS + g * 16);
            EACH_COLUMN(c) f32_store(scaled + (2 * c + b) * PAGE_SLOTS + g * 16, f32_mul(f32_load(p + c * PAGE_SLOTS + g * 16), d));
        }
}

/* As page_values_f16; scaled is room for [C][2][64]. */
ALWAYS_INLINE void page_values_q8(
    const int C, const float *p, const char *values, size_t padded, ptrdiff_t ahead, size_t begin, size_t end, float *o, size_t stride, float *scaled)
{
    const int many = C * 4 <= ACCUMULATORS ? 4 : C * 2 <= ACCUMULATORS ? 2 : 1;
    for (size_t e = 0; e < padded; e += STRIP) {
        size_t width = strip_width(e, padded), blocks = width / 32;
        const char *strip = values + e / 32 * Q8_BLOCK_NBYTES;
        const int8_t *v = (const int8_t *)strip + blocks * 2 * PAGE_SLOTS + begin * width;
        scale_weights(C, p, (const uint16_t *)strip, blocks, ahead, scaled);
        for (size_t at = 0; at < width;) {
            const float *own = scaled + at / 32 * PAGE_SLOTS;
            int wide = width - at >= 16 * (size_t)many;
            if (wide) values_q8(C, many, own, v + at, width, at ? 0 : ahead, begin, end, o + e + at, stride);
            else values_q8(C, 1, own, v + at, width, 0, begin, end, o + e + at, stride);
            at += wide ? 16 * many : 16;
        }
    }
}

#endif
