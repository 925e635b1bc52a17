/* Tiles of float formats and of blocks of 32 values. */
#ifndef OLLAMA_LINEAR_TILES_PLAIN_H
#define OLLAMA_LINEAR_TILES_PLAIN_H

#include "linear/tile.h"

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

#endif
