/* The loops around the tiles of linear.h.
 *
 * A block of groups stays in L2 while all panels of tokens pass it, so that weights come from memory once; a chunk of a panel stays in
 * L1 while that block's groups pass it. Totals wait in memory from chunk to chunk, which rounds nothing. Few tokens take the groups
 * one by one and whole, so that weights arrive from memory in order: with totals of 32 groups to clear between reads, eleven of fifteen
 * formats were slower. Few tokens past a float format, where all of a lane's additions wait for each other, take two groups,
 * a tile of each after the other: one past F16 streams 29 GB/s where it streamed 27 group by group.
 *
 * 512 x 4096 x 4096 on one Zen 4 core, GOP/s, of 473 that VPDPBUSD reaches:
 *                                     Q4_K   Q8_0   Q4_0   Q6_K   Q5_K    F16
 *   panels in L2, groups inside        330    315    345    276    317    102
 *   chunks in L1, groups in L2         360    353    356    322    344    114
 */
#ifndef OLLAMA_LINEAR_WALK_H
#define OLLAMA_LINEAR_WALK_H

#include "linear/tile.h"

enum { WEIGHTS_CACHED = 256 * 1024, X_CACHED = 16 * 1024, MOST_GROUPS = 32, TILE_NBYTES = 2048 };

typedef void tile_body(const int C, const struct tile *t, f32 *total);
typedef float group_totals[TILE_COLUMNS][LANES];

ALWAYS_INLINE void run_tile(const int C, const struct tile *t, float (*totals)[LANES], tile_body *body)
{
    f32 total[TILE_COLUMNS];
    EACH_COLUMN(c) total[c] = f32_load(totals[c]);
    body(C, t, total);
    EACH_COLUMN(c) f32_store(totals[c], total[c]);
}

/* Columns of one panel by the largest tiles that fit and leave more than one. */
#define TILE_CASE(size) case size: run_tile(size, &t, totals + done, body); break;
#define LARGEST(size) if (size <= left && left - size != 1) n = size;

ALWAYS_INLINE void run_tiles(struct tile t, size_t x_nbytes, float (*totals)[LANES], tile_body *body)
{
    const char *x = t.x;
    for (size_t done = 0, n = 1; done < t.columns; done += n, t.ahead = 0) {
        size_t left = t.columns - done;
        t.x = x + done * x_nbytes;
        TILE_SIZES(LARGEST)
        switch (n) { TILE_SIZES(TILE_CASE) }
    }
}

/* Where column t of the job goes. */
static inline float *out_row(const struct linear_job *job, size_t t)
{
    return job->out + (job->rows ? (size_t)job->rows[t] : t) * job->N;
}

static inline void store_totals(const struct linear_job *job, size_t g, struct column column, float (*totals)[LANES])
{
    size_t n = g * GROUP_ROWS, rows = job->N - n;
    for (size_t c = 0; c < column.columns; c++)
        f32_store_first(out_row(job, column.first + c) + n, f32_load(totals[c]), rows < GROUP_ROWS ? (int)rows : GROUP_ROWS);
}

/* The panel that starts at token `first`, times `count` groups from g on, in chunks of `chunk` blocks of k. */
ALWAYS_INLINE void run_panel(
    const struct linear_job *job, enum format format, size_t g, size_t count, size_t first, size_t chunk, tile_body *body)
{
    const struct format_info info = format_infos[format];
    const size_t x_nbytes = activation_nbytes(info.x, info.block_size), blocks = job->K / info.block_size;
    const size_t w_nbytes = GROUP_ROWS * info.block_nbytes, row = blocks * w_nbytes;
    const struct column column = column_of(first, job->T, TILE_COLUMNS);
    const char *x = (const char *)job->x + first * blocks * x_nbytes;
    group_totals totals[MOST_GROUPS];
    for (size_t b = 0, n; b < blocks; b += n) {
        n = blocks - b < chunk ? blocks - b : chunk;
        const size_t next = n * w_nbytes - (b + n < blocks ? (count - 1) * row : 0);
        for (size_t i = 0; i < count; i++) {
            if (!b) memset(totals[i], 0, column.columns * sizeof *totals[i]);
            struct tile t = {
                .weight = (const char *)job->weight + (g + i) * row + b * w_nbytes,
                .x = x + b * column.columns * x_nbytes,
                .columns = column.columns,
                .K = n * info.block_size,
                .ahead = (ptrdiff_t)(i + 1 < count ? row : next),
            };
            run_tiles(t, x_nbytes, totals[i], body);
            if (b + n == blocks) store_totals(job, g + i, column, totals[i]);
        }
    }
}

ALWAYS_INLINE void walk(const struct linear_job *job, enum format format, size_t g0, size_t g1, tile_body *body)
{
    const struct format_info info = format_infos[format];
    const size_t blocks = job->K / info.block_size, columns = job->T < TILE_COLUMNS ? job->T : TILE_COLUMNS;
    const size_t fit = WEIGHTS_CACHED / (GROUP_ROWS * row_nbytes(format, job->K) + 1);
    const int few = FEW(format, job->T), by_tiles = info.x == X_FLOAT && few;
    const size_t most = by_tiles ? 2 : few || fit < 1 ? 1 : fit < MOST_GROUPS ? fit : MOST_GROUPS;
    const size_t chunk = by_tiles ? TILE_NBYTES / (GROUP_ROWS * info.block_nbytes)
                       : few   ? blocks
                               : X_CACHED / (columns * activation_nbytes(info.x, info.block_size));
    for (size_t g = g0, n; g < g1; g += n) {
        n = g1 - g < most ? g1 - g : most;
        for (size_t first = 0; first < job->T; first += TILE_COLUMNS) run_panel(job, format, g, n, first, chunk, body);
    }
}

#endif
