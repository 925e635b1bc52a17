/* linear: 16 rows of a packed weight times up to TILE_COLUMNS tokens at once. Contract: ollama_zmq/ops/linear.py.
 *
 * The order of float operations, which is what makes bits independent of batch, threads and instruction set. Lane r is row r; blocks
 * come in the order of k; every line below is one rounded operation per lane (fma rounds once), sums of bytes are exact integers:
 *
 *   F32, F16, BF16   total = fma(w, x, total)                                                        for each k
 *   Q4_0 Q5_0 Q8_0   total = fma(float(sum q x) * d, x.scale, total)                                 for each 32
 *   IQ4_NL MXFP4     the same, with table[q] in place of q
 *   Q4_1 Q5_1        the same, then total = fma(m, x.scaled_sum, total)
 *   Q6_K Q3_K GRID   f = fma(float(sum q x), s, f) over 16 sub-blocks; total = fma(f * d, x.scale, total)
 *   IQ4_XS           the same over 8 sub-blocks
 *   Q4_K Q5_K Q2_K   f over 8 or 16 sub-blocks; total = fma(neg_fma(float(sum t x.sums), m, f * d), x.scale, total)
 *
 * A tile holds one integer and one float accumulator per column; TILE_COLUMNS is what fits the registers. With few columns a pass
 * over a block's vectors adds to several sums: each vector is then read once, and in order.
 *
 * Few columns wait for memory, and what streams is the hardware's prefetch of memory read in order. One software prefetch in 256 bytes,
 * to L2 and 4 KB ahead, starts it early after a page border, which is worth 0 to 10 %; 2 KB ahead is as good. Float formats
 * (linear_walk.h) stream faster without. More columns read memory too slowly for that: they prefetch every line of the weights that
 * are read next, a group ahead, while they multiply (GMAC/s of one Zen 4 thread, weights of 128 MB, K = 2048; in cache K = 1024):
 *                                     Q4_K, 6, 8, 12 columns     Q6_K                Q8_0
 *   as few columns do                 102    95   115             59    67    76      82    84   102
 *   every line, a group ahead         146   158   154            110   127   123     142   165   166
 *   weights in cache                  167   162   158            158   166   160     162   163   175
 * Every other line, or one in four, is no better than none.
 */
#ifndef OLLAMA_LINEAR_H
#define OLLAMA_LINEAR_H

#include "kernels.h"

enum { AHEAD_NBYTES = 4096 };

/* Whether so few columns wait for memory alone. */
#define FEW(format, C) ((C) <= ((format) == F32 ? 4 : (format) == Q8_0 ? 3 : 2))

/* Where several sums per column have registers. */
#define SUMS_FIT(C) (3 * (C) <= TILE_COLUMNS)

/* C columns of one group: where they come from and where they go. */
struct tile {
    const void *weight;     /* the group */
    const void *x;          /* the first column in block 0 of its panel */
    size_t columns;         /* of the panel: the step from block to block */
    size_t K;
    ptrdiff_t ahead;        /* from these weights to those that are read next */
};

ALWAYS_INLINE void prefetch_ahead(const int few, const struct tile *t, const void *p, int nbytes)
{
    UNROLL for (int i = 0; i < nbytes; i += few ? 256 : 64) PREFETCH((const char *)p + (few ? AHEAD_NBYTES : t->ahead) + i);
}

ALWAYS_INLINE void tile_float(const int C, enum format format, const struct tile *t, f32 *total)
{
    const float *x = t->x;
    const char *w = t->weight;
    const size_t step = format == F32 ? 64 : 32;
    for (size_t k = 0; k < t->K; k++, w += step, x += t->columns) {
        if (!FEW(format, C)) PREFETCH(w + t->ahead);
        f32 row = format == F32   ? f32_load((const float *)w)
                  : format == F16 ? f32_of_half((const uint16_t *)w)
                                  : f32_of_bfloat((const uint16_t *)w);
        EACH_COLUMN(c) total[c] = f32_fma(row, f32_set(x[c]), total[c]);
    }
}

ALWAYS_INLINE void tile_f32(const int C, const struct tile *t, f32 *total) { tile_float(C, F32, t, total); }
ALWAYS_INLINE void tile_f16(const int C, const struct tile *t, f32 *total) { tile_float(C, F16, t, total); }
ALWAYS_INLINE void tile_bf16(const int C, const struct tile *t, f32 *total) { tile_float(C, BF16, t, total); }

/* total += float(sum) * d * x.scale */
ALWAYS_INLINE void add_block(const int C, const i32 *sum, f32 d, const struct x32 *x, f32 *total)
{
    EACH_COLUMN(c) total[c] = f32_fma(f32_mul(f32_of_i32(sum[c]), d), f32_set(x[c].scale), total[c]);
}

ALWAYS_INLINE void add_minimum(const int C, const uint16_t *m, const struct x32 *x, f32 *total)
{
    f32 minimum = f32_of_half(m);
    EACH_COLUMN(c) total[c] = f32_fma(minimum, f32_set(x[c].scaled_sum), total[c]);
}

/* sum += nibbles of 32 k (with their fifth bits, if there are any) times x */
ALWAYS_INLINE void dot_nibbles(const int C, const uint32_t (*q)[16], const uint32_t *high, const struct x32 *x, i32 *sum)
{
    u8 fifth = high ? u8_load(high) : u8_load(q[0]);
    UNROLL for (int i = 0; i < 4; i++) {
        u8 both = u8_load(q[i]);
        u8 low = u8_and(both, 15), upper = u8_and(u8_shr(both, 4), 15);
        if (high) {
            low = u8_or(low, u8_and(u8_shl(fifth, 4 - i), 16));
            upper = u8_or(upper, u8_and(u8_shr(fifth, i), 16));
        }
        EACH_COLUMN(c) sum[c] = i32_dot(sum[c], low, x[c].q + 4 * i);
        EACH_COLUMN(c) sum[c] = i32_dot(sum[c], upper, x[c].q + 16 + 4 * i);
    }
}

ALWAYS_INLINE void tile_q4_0(const int C, const struct tile *t, f32 *total)
{
    const struct packed_q4_0 *w = t->weight;
    const struct x32 *x = t->x;
    for (size_t k = 0; k < t->K; k += 32, w++, x += t->columns) {
        i32 sum[TILE_COLUMNS];
        prefetch_ahead(FEW(Q4_0, C), t, w, sizeof *w);
        EACH_COLUMN(c) sum[c] = i32_set(x[c].start8);
        dot_nibbles(C, w->q, NULL, x, sum);
        add_block(C, sum, f32_of_half(w->d), x, total);
    }
}

ALWAYS_INLINE void tile_q4_1(const int C, const struct tile *t, f32 *total)
{
    const struct packed_q4_1 *w = t->weight;
    const struct x32 *x = t->x;
    for (size_t k = 0; k < t->K; k += 32, w++, x += t->columns) {
        i32 sum[TILE_COLUMNS];
        prefetch_ahead(FEW(Q4_1, C), t, w, sizeof *w);
        EACH_COLUMN(c) sum[c] = i32_zero();
        dot_nibbles(C, w->q, NULL, x, sum);
        add_block(C, sum, f32_of_half(w->d), x, total);
        add_minimum(C, w->m, x, total);
    }
}

ALWAYS_INLINE void tile_q5_0(const int C, const struct tile *t, f32 *total)
{
    const struct packed_q5_0 *w = t->weight;
    const struct x32 *x = t->x;
    for (size_t k = 0; k < t->K; k += 32, w++, x += t->columns) {
        i32 sum[TILE_COLUMNS];
        prefetch_ahead(FEW(Q5_0, C), t, w, sizeof *w);
        EACH_COLUMN(c) sum[c] = i32_set(x[c].start16);
        dot_nibbles(C, w->q, w->high, x, sum);
        add_block(C, sum, f32_of_half(w->d), x, total);
    }
}

ALWAYS_INLINE void tile_q5_1(const int C, const struct tile *t, f32 *total)
{
    const struct packed_q5_1 *w = t->weight;
    const struct x32 *x = t->x;
    for (size_t k = 0; k < t->K; k += 32, w++, x += t->columns) {
        i32 sum[TILE_COLUMNS];
        prefetch_ahead(FEW(Q5_1, C), t, w, sizeof *w);
        EACH_COLUMN(c) sum[c] = i32_zero();
        dot_nibbles(C, w->q, w->high, x, sum);
        add_block(C, sum, f32_of_half(w->d), x, total);
        add_minimum(C, w->m, x, total);
    }
}

ALWAYS_INLINE void tile_q8_0(const int C, const struct tile *t, f32 *total)
{
    const struct packed_q8_0 *w = t->weight;
    const struct x32 *x = t->x;
    for (size_t k = 0; k < t->K; k += 32, w++, x += t->columns) {
        i32 sum[TILE_COLUMNS];
        prefetch_ahead(FEW(Q8_0, C), t, w, sizeof *w);
        EACH_COLUMN(c) sum[c] = i32_start128(&x[c].start128);
        UNROLL for (int i = 0; i < 8; i++) {
            u8 bytes = u8_load(w->q[i]);
            EACH_COLUMN(c) sum[c] = i32_dot128(sum[c], bytes, x[c].q + 4 * i);
        }
        add_block(C, sum, f32_of_half(w->d), x, total);
    }
}

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

ALWAYS_INLINE void add_scaled(const int C, const i32 *sum, f32 scale, f32 *f)
{
    EACH_COLUMN(c) f[c] = f32_fma(f32_of_i32(sum[c]), scale, f[c]);
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

#include "linear_low.h"
#include "linear_table.h"
#include "linear_walk.h"

#endif
