/* Scores and weighted values of one page of float16, C columns at a time. Order of operations: attention.h. */
#ifndef OLLAMA_ATTENTION_F16_H
#define OLLAMA_ATTENTION_F16_H

#include "attention/page.h"

/* Queries of a tile: float32 [head_dim][C], times scale. */
static inline void pack_query_f16(const float *q, size_t head_dim, float scale, char *tile, size_t C, size_t c)
{
    float *out = (float *)tile + c;
    for (size_t e = 0; e < head_dim; e++) out[e * C] = q[e] * scale;
}

/* Scores of 16 * GROUPS slots; few columns ask for the cache lines `ahead` bytes on. */
ALWAYS_INLINE void scores_f16(const int C, const int GROUPS, const float *q, size_t head_dim, const uint16_t *k, ptrdiff_t ahead, float *p)
{
    f32 sum[4][MOST_COLUMNS], key[4];
    UNROLL for (int g = 0; g < GROUPS; g++) EACH_COLUMN(c) sum[g][c] = f32_zero();
    for (size_t e = 0; e < head_dim; e++, k += PAGE_SLOTS, q += C) {
        if (C <= DECODED_COLUMNS) {
            PREFETCH((const char *)k + ahead);
            PREFETCH((const char *)k + 64 + ahead);
        }
        UNROLL for (int g = 0; g < GROUPS; g++) key[g] = f32_of_half(k + g * 16);
        EACH_COLUMN(c) {
            f32 query = f32_set(q[c]);
            UNROLL for (int g = 0; g < GROUPS; g++) sum[g][c] = f32_fma(key[g], query, sum[g][c]);
        }
    }
    UNROLL for (int g = 0; g < GROUPS; g++) EACH_COLUMN(c) f32_store(p + c * PAGE_SLOTS + g * 16, sum[g][c]);
}

/* Scores of slots 16 * first .. 16 * end - 1 into p [C][64]. */
ALWAYS_INLINE void page_scores_f16(const int C, const char *q, size_t head_dim, const char *keys, ptrdiff_t ahead, size_t first, size_t end, float *p)
{
    const int many = C * 4 <= ACCUMULATORS ? 4 : C * 2 <= ACCUMULATORS ? 2 : 1;
    const uint16_t *k = (const uint16_t *)keys;
    size_t g = first;
    for (; g + many <= end; g += many) scores_f16(C, many, (const float *)q, head_dim, k + g * 16, g == first ? ahead : 0, p + g * 16);
    for (; g < end; g++) scores_f16(C, 1, (const float *)q, head_dim, k + g * 16, 0, p + g * 16);
}

/* o[e .. e + 16 * VECTORS] += sum over slots begin .. end - 1 of p[s] * v[s]; v at slot `begin`, o of a column every `stride`. */
ALWAYS_INLINE void values_f16(
    const int C, const int VECTORS, const float *p, const uint16_t *v, size_t width, ptrdiff_t ahead, size_t begin, size_t end, float *o, size_t stride)
{
    f32 sum[4][MOST_COLUMNS], value[4];
    UNROLL for (int i = 0; i < VECTORS; i++) EACH_COLUMN(c) sum[i][c] = f32_load(o + c * stride + 16 * i);
    for (size_t s = begin; s < end; s++, v += width) {
        if (C <= DECODED_COLUMNS) {
            PREFETCH((const char *)v + ahead);
            PREFETCH((const char *)v + 64 + ahead);
        }
        UNROLL for (int i = 0; i < VECTORS; i++) value[i] = f32_of_half(v + 16 * i);
        EACH_COLUMN(c) {
            f32 weight = f32_set(p[c * PAGE_SLOTS + s]);
            UNROLL for (int i = 0; i < VECTORS; i++) sum[i][c] = f32_fma(weight, value[i], sum[i][c]);
        }
    }
    UNROLL for (int i = 0; i < VECTORS; i++) EACH_COLUMN(c) f32_store(o + c * stride + 16 * i, sum[i][c]);
}

ALWAYS_INLINE void page_values_f16(
    const int C, const float *p, const char *values, size_t padded, ptrdiff_t ahead, size_t begin, size_t end, float *o, size_t stride)
{
    const int many = C * 4 <= ACCUMULATORS ? 4 : C * 2 <= ACCUMULATORS ? 2 : 1;
    for (size_t e = 0; e < padded;) {
        size_t width = strip_width(e, padded), at = e % STRIP;
        const uint16_t *v = (const uint16_t *)values + (e - at) * PAGE_SLOTS + begin * width + at;
        int wide = width - at >= 16 * (size_t)many;
        if (wide) values_f16(C, many, p, v, width, at ? 0 : ahead, begin, end, o + e, stride);
        else values_f16(C, 1, p, v, width, 0, begin, end, o + e, stride);
        e += wide ? 16 * many : 16;
    }
}

#endif
