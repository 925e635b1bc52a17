/* What all tiles of linear.h are made of: the tile itself, its prefetch, and the ends of its blocks.
 *
 * A tile holds one integer and one float accumulator per column; TILE_COLUMNS is what fits the registers. With few columns a pass
 * over a block's vectors adds to several sums: each vector is then read once, and in order.
 *
 * Few columns wait for memory, and what streams is the hardware's prefetch of memory read in order. One software prefetch in 256 bytes,
 * to L2 and 4 KB ahead, starts it early after a page border, which is worth 0 to 10 %; 2 KB ahead is as good. Float formats
 * (linear/walk.h) stream faster without. More columns read memory too slowly for that: they prefetch every line of the weights that
 * are read next, a group ahead, while they multiply (GMAC/s of one Zen 4 thread, weights of 128 MB, K = 2048; in cache K = 1024):
 *                                     Q4_K, 6, 8, 12 columns     Q6_K                Q8_0
 *   as few columns do                 102    95   115             59    67    76      82    84   102
 *   every line, a group ahead         146   158   154            110   127   123     142   165   166
 *   weights in cache                  167   162   158            158   166   160     162   163   175
 * Every other line, or one in four, is no better than none.
 */
#ifndef OLLAMA_LINEAR_TILE_H
#define OLLAMA_LINEAR_TILE_H

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

ALWAYS_INLINE void add_scaled(const int C, const i32 *sum, f32 scale, f32 *f)
{
    EACH_COLUMN(c) f[c] = f32_fma(f32_of_i32(sum[c]), scale, f[c]);
}

#endif
