/* Tiles whose 4-bit numbers index a table (tables.h): one byte shuffle per vector. */
#ifndef OLLAMA_LINEAR_TILES_LOOKUP_H
#define OLLAMA_LINEAR_TILES_LOOKUP_H

#include "formats/tables.h"
#include "linear/tile.h"

/* What nibbles in the low or high halves of a vector stand for. */
ALWAYS_INLINE u8 looked_up(u8 table, const uint32_t *q, const int high)
{
    return u8_lookup(table, u8_and(high ? u8_shr(u8_load(q), 4) : u8_load(q), 15));
}

/* sum += table[q] of 32 k, 128 added, times x. */
ALWAYS_INLINE void dot_iq4(const int C, u8 table, const uint32_t (*q)[16], const int8_t *const *x, i32 *sum)
{
    UNROLL for (int i = 0; i < 4; i++) {
        u8 low = looked_up(table, q[i], 0), high = looked_up(table, q[i], 1);
        EACH_COLUMN(c) sum[c] = i32_dot127(sum[c], low, x[c] + 4 * i);
        EACH_COLUMN(c) sum[c] = i32_dot127(sum[c], high, x[c] + 16 + 4 * i);
    }
}

ALWAYS_INLINE void tile_iq4_nl(const int C, const struct tile *t, f32 *total)
{
    const struct packed_q4_0 *w = t->weight;
    const struct x32 *x = t->x;
    const u8 table = u8_table127(iq4_table);
    for (size_t k = 0; k < t->K; k += 32, w++, x += t->columns) {
        const int8_t *q[TILE_COLUMNS];
        i32 sum[TILE_COLUMNS];
        prefetch_ahead(FEW(IQ4_NL, C), t, w, sizeof *w);
        EACH_COLUMN(c) q[c] = x[c].q;
        EACH_COLUMN(c) sum[c] = i32_start128(&x[c].start128);
        dot_iq4(C, table, w->q, q, sum);
        add_block(C, sum, f32_of_half(w->d), x, total);
    }
}

ALWAYS_INLINE void tile_mxfp4(const int C, const struct tile *t, f32 *total)
{
    const struct packed_mxfp4 *w = t->weight;
    const struct x32 *x = t->x;
    const u8 table = u8_table(mxfp4_table);
    for (size_t k = 0; k < t->K; k += 32, w++, x += t->columns) {
        i32 sum[TILE_COLUMNS];
        prefetch_ahead(FEW(MXFP4, C), t, w, sizeof *w);
        EACH_COLUMN(c) sum[c] = i32_set(x[c].start16);
        UNROLL for (int i = 0; i < 4; i++) {
            u8 low = looked_up(table, w->q[i], 0), high = looked_up(table, w->q[i], 1);
            EACH_COLUMN(c) sum[c] = i32_dot(sum[c], low, x[c].q + 4 * i);
            EACH_COLUMN(c) sum[c] = i32_dot(sum[c], high, x[c].q + 16 + 4 * i);
        }
        add_block(C, sum, f32_of_e8m0(w->e), x, total);
    }
}

ALWAYS_INLINE void tile_iq4_xs(const int C, const struct tile *t, f32 *total)
{
    const struct packed_iq4_xs *w = t->weight;
    const struct x256 *x = t->x;
    const u8 table = u8_table127(iq4_table);
    for (size_t k = 0; k < t->K; k += 256, w++, x += t->columns) {
        i32 low = i32_load(w->low), high = i32_shl(i32_of_u16(w->high), 4);
        f32 f[TILE_COLUMNS];
        EACH_COLUMN(c) f[c] = f32_zero();
        for (int j = 0; j < 8; j++) {
            const int8_t *q[TILE_COLUMNS];
            i32 sum[TILE_COLUMNS];
            prefetch_ahead(FEW(IQ4_XS, C), t, (const char *)w + j * sizeof *w / 8, sizeof *w / 8);
            EACH_COLUMN(c) q[c] = x[c].q + 32 * j;
            EACH_COLUMN(c) sum[c] = i32_start128(&x[c].start128[j]);
            dot_iq4(C, table, w->q + 4 * j, q, sum);
            i32 bits = i32_or(i32_and(i32_shr(low, 4 * j), i32_set(15)), i32_and(i32_shr(high, 2 * j), i32_set(48)));
            f32 scale = f32_of_i32(i32_add(bits, i32_set(-32)));
            EACH_COLUMN(c) f[c] = f32_fma(f32_of_i32(sum[c]), scale, f[c]);
        }
        f32 d = f32_of_half(w->d);
        EACH_COLUMN(c) total[c] = f32_fma(f32_mul(f[c], d), f32_set(x[c].scale), total[c]);
    }
}

/* f += s * (sum of sub-block times x) for sub-blocks n = 4 pair + 2 upper + part of 16 k; see add_chunk. */
ALWAYS_INLINE void add_pair_grid(
    const int C, const int part, int pair, u8 table, const struct packed_grid *w, const struct x256 *x, f32 *f)
{
    const uint32_t(*q)[16] = w->q + 8 * pair + 4 * part;
    const int n = 4 * pair + part;
    i32 sum[2][TILE_COLUMNS];
    UNROLL for (int upper = 0; upper < 2; upper++) {
        EACH_COLUMN(c) sum[upper][c] = i32_set(GRID_OFFSET / 32 * x[c].start32[n + 2 * upper]);
    }
    UNROLL for (int i = 0; i < 4 && SUMS_FIT(C); i++) {
        u8 low = looked_up(table, q[i], 0), high = looked_up(table, q[i], 1);
        EACH_COLUMN(c) sum[0][c] = i32_dot(sum[0][c], low, x[c].q + 16 * n + 4 * i);
        EACH_COLUMN(c) sum[1][c] = i32_dot(sum[1][c], high, x[c].q + 16 * n + 32 + 4 * i);
    }
    UNROLL for (int upper = 0; upper < 2; upper++) {
        UNROLL for (int i = 0; i < 4 && !SUMS_FIT(C); i++) {
            u8 values = looked_up(table, q[i], upper);
            EACH_COLUMN(c) sum[upper][c] = i32_dot(sum[upper][c], values, x[c].q + 16 * n + 32 * upper + 4 * i);
        }
        add_scaled(C, sum[upper], f32_of_i8(w->scales[n + 2 * upper]), f);
    }
}

ALWAYS_INLINE void tile_grid(const int C, const struct tile *t, f32 *total)
{
    const struct packed_grid *w = t->weight;
    const struct x256 *x = t->x;
    for (size_t k = 0; k < t->K; k += 256, w++, x += t->columns) {
        const struct grid_table *grid = &grid_tables[w->table[0] % GRID_TABLES];
        const u8 table = u8_table(grid->values);
        f32 f[TILE_COLUMNS];
        EACH_COLUMN(c) f[c] = f32_zero();
        for (int pair = 0; pair < 4; pair++) {
            prefetch_ahead(FEW(GRID, C), t, (const char *)w + pair * sizeof *w / 4, sizeof *w / 4);
            add_pair_grid(C, 0, pair, table, w, x, f);
            add_pair_grid(C, 1, pair, table, w, x, f);
        }
        f32 d = f32_mul(f32_of_half(w->d), f32_set(grid->unit));
        EACH_COLUMN(c) total[c] = f32_fma(f32_mul(f[c], d), f32_set(x[c].scale), total[c]);
    }
}

#endif
