/* Tiles of Q4_K, Q5_K and Q6_K. */
#ifndef OLLAMA_LINEAR_TILES_K_H
#define OLLAMA_LINEAR_TILES_K_H

#include "linear/tile.h"

/* Scales (128 bytes, by sub-block and row) and minimums (pairs for i32_dot_pairs) of Q4_K and Q5_K. */
ALWAYS_INLINE void split_scales(const uint8_t (*packed)[64], uint8_t *scales, uint8_t *minimums)
{
    u8 first = u8_load(packed[0]), second = u8_load(packed[1]), high = u8_load(packed[2]);
    u8_store(scales, u8_or(u8_and(first, 15), u8_and(u8_shl(high, 4), 48)));
    u8_store(scales + 64, u8_or(u8_and(second, 15), u8_and(high, 48)));
    u8_store(minimums, u8_or(u8_and(u8_shr(first, 4), 15), u8_and(u8_shl(high, 2), 48)));
    u8_store(minimums + 64, u8_or(u8_and(u8_shr(second, 4), 15), u8_and(u8_shr(high, 2), 48)));
}

/* Byte vectors of a pair of sub-blocks of Q4_K or Q5_K: its i-th nibbles, the upper or the lower, with their fifth bits. */
ALWAYS_INLINE u8 five_bits(u8 nibbles, const uint32_t (*fifth)[16], int i, const int upper)
{
    const int bit = 2 * (i % 4) + upper;
    u8 w = u8_and(upper ? u8_shr(nibbles, 4) : nibbles, 15);
    if (!fifth) return w;
    u8 high = u8_load(fifth[i / 4]);
    return u8_or(w, u8_and(bit < 4 ? u8_shl(high, 4 - bit) : u8_shr(high, bit - 4), 16));
}

/* f += s * (sum of sub-block times x) for the two sub-blocks of a pair; where registers allow, in one pass over its weights. */
ALWAYS_INLINE void add_pair(
    const int C, int pair, const uint32_t (*q)[16], const uint32_t (*fifth)[16], const uint8_t *scales, const struct x256 *x, f32 *f)
{
    i32 sum[2][TILE_COLUMNS];
    EACH_COLUMN(c) sum[0][c] = sum[1][c] = i32_zero();
    if (SUMS_FIT(C)) {
        UNROLL for (int i = 0; i < 8; i += 4) {
            u8 low[4], upper[4];
            UNROLL for (int j = 0; j < 4; j++) low[j] = five_bits(u8_load(q[i + j]), fifth, i + j, 0);
            UNROLL for (int j = 0; j < 4; j++) upper[j] = five_bits(u8_load(q[i + j]), fifth, i + j, 1);
            EACH_COLUMN(c) sum[0][c] = i32_dot4(sum[0][c], low, x[c].q + 64 * pair + 4 * i);
            EACH_COLUMN(c) sum[1][c] = i32_dot4(sum[1][c], upper, x[c].q + 64 * pair + 32 + 4 * i);
        }
        add_scaled(C, sum[0], f32_of_u8(scales + 32 * pair), f);
        add_scaled(C, sum[1], f32_of_u8(scales + 32 * pair + 16), f);
        return;
    }
    UNROLL for (int upper = 0; upper < 2; upper++) {
        UNROLL for (int i = 0; i < 8; i++) {
            u8 w = five_bits(u8_load(q[i]), fifth, i, upper);
            EACH_COLUMN(c) sum[upper][c] = i32_dot(sum[upper][c], w, x[c].q + 64 * pair + 32 * upper + 4 * i);
        }
        add_scaled(C, sum[upper], f32_of_u8(scales + 32 * pair + 16 * upper), f);
    }
}

/* total += (d * f - m * (sum of minimums times x)) * x.scale: the end of a block of Q4_K or Q5_K. */
ALWAYS_INLINE void add_block_k(
    const int C, const uint16_t *d, const uint16_t *m, const uint8_t *minimums, const f32 *f, const struct x256 *x, f32 *total)
{
    f32 scale = f32_of_half(d), minimum = f32_of_half(m);
    EACH_COLUMN(c) {
        i32 below = i32_zero();
        UNROLL for (int p = 0; p < 4; p++) below = i32_dot_pairs(below, minimums + 32 * p, x[c].sums + 2 * p);
        f32 block = f32_neg_fma(f32_of_i32(below), minimum, f32_mul(f[c], scale));
        total[c] = f32_fma(block, f32_set(x[c].scale), total[c]);
    }
}

ALWAYS_INLINE void tile_q4_k(const int C, const struct tile *t, f32 *total)
{
    const struct packed_q4_k *w = t->weight;
    const struct x256 *x = t->x;
    for (size_t k = 0; k < t->K; k += 256, w++, x += t->columns) {
        uint8_t scales[128], minimums[128];
        f32 f[TILE_COLUMNS];
        split_scales(w->scales, scales, minimums);
        EACH_COLUMN(c) f[c] = f32_zero();
        for (int pair = 0; pair < 4; pair++) {
            prefetch_ahead(FEW(Q4_K, C), t, (const char *)w + pair * sizeof *w / 4, sizeof *w / 4);
            add_pair(C, pair, w->q + 8 * pair, NULL, scales, x, f);
        }
        add_block_k(C, w->d, w->m, minimums, f, x, total);
    }
}

ALWAYS_INLINE void tile_q5_k(const int C, const struct tile *t, f32 *total)
{
    const struct packed_q5_k *w = t->weight;
    const struct x256 *x = t->x;
    for (size_t k = 0; k < t->K; k += 256, w++, x += t->columns) {
        uint8_t scales[128], minimums[128];
        f32 f[TILE_COLUMNS];
        split_scales(w->scales, scales, minimums);
        EACH_COLUMN(c) f[c] = f32_zero();
        for (int pair = 0; pair < 4; pair++) {
            prefetch_ahead(FEW(Q5_K, C), t, (const char *)w + pair * sizeof *w / 4, sizeof *w / 4);
            add_pair(C, pair, w->pair[pair].q, w->pair[pair].high, scales, x, f);
        }
        add_block_k(C, w->d, w->m, minimums, f, x, total);
    }
}

/* Byte vector i of sub-block u of a chunk of Q6_K. */
ALWAYS_INLINE u8 six_bits(u8 four, u8 two, const int u)
{
    four = u < 2 ? four : u8_shr(four, 4);
    two = u < 2 ? u8_shl(two, 4 - 2 * u) : u8_shr(two, 2 * u - 4);
    return u8_or(u8_and(four, 15), u8_and(two, 48));
}

/* f += s * (sum of sub-block times x) for the four sub-blocks of a chunk; where registers allow, in one pass over its weights. */
ALWAYS_INLINE void add_chunk(const int C, int chunk, const struct packed_q6_k *w, const struct x256 *x, f32 *f)
{
    if (SUMS_FIT(C)) {
        i32 sum[4][TILE_COLUMNS];
        UNROLL for (int u = 0; u < 4; u++) EACH_COLUMN(c) sum[u][c] = i32_set(x[c].start32[4 * chunk + u]);
        UNROLL for (int i = 0; i < 4; i++) {
            u8 two = u8_load(w->chunk[chunk].q[i].high);
            UNROLL for (int u = 0; u < 4; u++) {
                u8 q = six_bits(u8_load(w->chunk[chunk].q[i].low[u % 2]), two, u);
                EACH_COLUMN(c) sum[u][c] = i32_dot(sum[u][c], q, x[c].q + 64 * chunk + 16 * u + 4 * i);
            }
        }
        UNROLL for (int u = 0; u < 4; u++) add_scaled(C, sum[u], f32_of_i8(w->chunk[chunk].scales[u]), f);
        return;
    }
    UNROLL for (int u = 0; u < 4; u++) {
        i32 sum[TILE_COLUMNS];
        EACH_COLUMN(c) sum[c] = i32_set(x[c].start32[4 * chunk + u]);
        UNROLL for (int i = 0; i < 4; i++) {
            u8 q = six_bits(u8_load(w->chunk[chunk].q[i].low[u % 2]), u8_load(w->chunk[chunk].q[i].high), u);
            EACH_COLUMN(c) sum[c] = i32_dot(sum[c], q, x[c].q + 64 * chunk + 16 * u + 4 * i);
        }
        add_scaled(C, sum, f32_of_i8(w->chunk[chunk].scales[u]), f);
    }
}

ALWAYS_INLINE void tile_q6_k(const int C, const struct tile *t, f32 *total)
{
    const struct packed_q6_k *w = t->weight;
    const struct x256 *x = t->x;
    for (size_t k = 0; k < t->K; k += 256, w++, x += t->columns) {
        f32 f[TILE_COLUMNS];
        EACH_COLUMN(c) f[c] = f32_zero();
        for (int chunk = 0; chunk < 4; chunk++) {
            prefetch_ahead(FEW(Q6_K, C), t, (const char *)w + chunk * sizeof *w / 4, sizeof *w / 4);
            add_chunk(C, chunk, w, x, f);
        }
        f32 d = f32_of_half(w->d);
        EACH_COLUMN(c) total[c] = f32_fma(f32_mul(f[c], d), f32_set(x[c].scale), total[c]);
    }
}

#endif
