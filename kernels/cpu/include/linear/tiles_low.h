/* Tiles of two and three bits.
 *
 * f of Q2_K is a sum of integers below 2^24 / 4, which float operations in any order give exactly; so do integer ones.
 *
 * A field in the upper bits of a byte is not shifted down: masked where it stands it makes the sum 4 or 8 times as large, and the
 * scale is divided by as much instead, which is exact and costs one operation per sub-block rather than one per vector.
 */
#ifndef OLLAMA_LINEAR_TILES_LOW_H
#define OLLAMA_LINEAR_TILES_LOW_H

#include "linear/tile.h"

/* Vector of sub-block u of four: q for u = 0 and 2, 4 q for 1 and 3. */
ALWAYS_INLINE u8 two_bits(u8 four, const int u)
{
    return u8_and(u < 2 ? four : u8_shr(four, 4), u % 2 ? 12 : 3);
}

/* acc += 4 s * (sum of sub-block times x) for the four sub-blocks n = 8 half + 2 u + part of 16 k. */
ALWAYS_INLINE void add_four_q2(const int C, int half, const int part, const struct packed_q2_k *w, const uint8_t (*scales)[256],
                               const struct x256 *x, i32 *acc)
{
    u8 four[4], two[4];
    UNROLL for (int i = 0; i < 4; i++) four[i] = u8_load(w->q[8 * half + 4 * part + i]);
    UNROLL for (int u = 0; u < 4; u++) {
        const int n = 8 * half + 2 * u + part;
        UNROLL for (int i = 0; i < 4; i++) two[i] = two_bits(four[i], u);
        EACH_COLUMN(c) acc[c] = i32_dot4_scaled(acc[c], two, x[c].q + 16 * n, scales[u % 2] + 16 * n);
    }
}

/* Scales times 4, scales, and minimums. */
ALWAYS_INLINE void split_scales_q2(const uint8_t (*packed)[64], uint8_t (*scales)[256], uint8_t *minimums)
{
    UNROLL for (int i = 0; i < 4; i++) {
        u8 both = u8_load(packed[i]);
        u8_store(scales[0] + 64 * i, u8_and(u8_shl(both, 2), 60));
        u8_store(scales[1] + 64 * i, u8_and(both, 15));
        u8_store(minimums + 64 * i, u8_and(u8_shr(both, 4), 15));
    }
}

ALWAYS_INLINE void tile_q2_k(const int C, const struct tile *t, f32 *total)
{
    const struct packed_q2_k *w = t->weight;
    const struct x256 *x = t->x;
    for (size_t k = 0; k < t->K; k += 256, w++, x += t->columns) {
        uint8_t scales[2][256], minimums[256];
        i32 acc[TILE_COLUMNS];
        split_scales_q2(w->scales, scales, minimums);
        EACH_COLUMN(c) acc[c] = i32_zero();
        for (int half = 0; half < 2; half++) {
            prefetch_ahead(FEW(Q2_K, C), t, (const char *)w + half * sizeof *w / 2, sizeof *w / 2);
            add_four_q2(C, half, 0, w, scales, x, acc);
            add_four_q2(C, half, 1, w, scales, x, acc);
        }
        f32 d = f32_of_half(w->d), m = f32_of_half(w->m);
        EACH_COLUMN(c) {
            i32 below = i32_zero();
            UNROLL for (int p = 0; p < 8; p++) below = i32_dot_pairs(below, minimums + 32 * p, x[c].sums16 + 2 * p);
            f32 f = f32_mul(f32_of_i32(acc[c]), f32_set(0.25f));
            f32 block = f32_neg_fma(f32_of_i32(below), m, f32_mul(f, d));
            total[c] = f32_fma(block, f32_set(x[c].scale), total[c]);
        }
    }
}

/* Scales minus 32 (256 signed bytes, by sub-block and row) of Q3_K. */
ALWAYS_INLINE void split_scales_q3(const uint8_t (*packed)[64], int8_t *scales)
{
    u8 first = u8_load(packed[0]), second = u8_load(packed[1]), high = u8_load(packed[2]);
    u8_store(scales, u8_add(u8_or(u8_and(first, 15), u8_and(u8_shl(high, 4), 48)), -32));
    u8_store(scales + 64, u8_add(u8_or(u8_and(second, 15), u8_and(u8_shl(high, 2), 48)), -32));
    u8_store(scales + 128, u8_add(u8_or(u8_and(u8_shr(first, 4), 15), u8_and(high, 48)), -32));
    u8_store(scales + 192, u8_add(u8_or(u8_and(u8_shr(second, 4), 15), u8_and(u8_shr(high, 2), 48)), -32));
}

/* Four k of Q3_K, q in bits 0-2 for u = 0 and bits 3-5 for u = 1. */
ALWAYS_INLINE u8 three_bits(const uint32_t (*q)[16], const int u, const int i)
{
    if (i < 3) return u8_and(u8_load(q[i]), u ? 56 : 7);
    u8 six = u8_and(u8_shr(u8_load(q[0]), 6), 3);
    six = u8_or(six, u8_and(u8_shr(u8_load(q[1]), 4), 12));
    six = u8_or(six, u8_and(u8_shr(u8_load(q[2]), 2), 48));
    return u8_and(six, u ? 56 : 7);
}

/* f += s * (sum of sub-block times x) for the two sub-blocks of a chunk; see add_chunk. */
ALWAYS_INLINE void add_chunk_q3(
    const int C, int chunk, const struct packed_q3_k *w, const int8_t *scales, const struct x256 *x, f32 *f)
{
    const uint32_t(*q)[16] = w->q[chunk];
    i32 sum[2][TILE_COLUMNS];
    EACH_COLUMN(c) sum[0][c] = i32_set(x[c].start4[chunk]);
    EACH_COLUMN(c) sum[1][c] = i32_set(x[c].start32[2 * chunk + 1]);
    UNROLL for (int i = 0; i < 4 && SUMS_FIT(C); i++) {
        u8 low = three_bits(q, 0, i), upper = three_bits(q, 1, i);
        EACH_COLUMN(c) sum[0][c] = i32_dot(sum[0][c], low, x[c].q + 32 * chunk + 4 * i);
        EACH_COLUMN(c) sum[1][c] = i32_dot(sum[1][c], upper, x[c].q + 32 * chunk + 16 + 4 * i);
    }
    UNROLL for (int u = 0; u < 2; u++) {
        UNROLL for (int i = 0; i < 4 && !SUMS_FIT(C); i++) {
            u8 three = three_bits(q, u, i);
            EACH_COLUMN(c) sum[u][c] = i32_dot(sum[u][c], three, x[c].q + 32 * chunk + 16 * u + 4 * i);
        }
        f32 scale = f32_of_i8(scales + 32 * chunk + 16 * u);
        add_scaled(C, sum[u], u ? f32_mul(scale, f32_set(0.125f)) : scale, f);
    }
}

ALWAYS_INLINE void tile_q3_k(const int C, const struct tile *t, f32 *total)
{
    const struct packed_q3_k *w = t->weight;
    const struct x256 *x = t->x;
    for (size_t k = 0; k < t->K; k += 256, w++, x += t->columns) {
        int8_t scales[256];
        f32 f[TILE_COLUMNS];
        split_scales_q3(w->scales, scales);
        EACH_COLUMN(c) f[c] = f32_zero();
        for (int chunk = 0; chunk < 8; chunk++) {
            prefetch_ahead(FEW(Q3_K, C), t, (const char *)w + chunk * sizeof *w / 8, sizeof *w / 8);
            add_chunk_q3(C, chunk, w, scales, x, f);
        }
        f32 d = f32_of_half(w->d);
        EACH_COLUMN(c) total[c] = f32_fma(f32_mul(f[c], d), f32_set(x[c].scale), total[c]);
    }
}

#endif
