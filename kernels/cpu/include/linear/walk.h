/* The loops around the tiles of linear.h.
 *
 * A block of groups stays in L2 while all panels of tokens pass it, so that weights come from memory once; a chunk of a panel stays in
 * L1 while that block's groups pass it. Totals wait in memory from chunk to chunk, which rounds nothing. Few tokens take the groups
 * one by one and whole, so that weights arrive from memory in order: with totals of 32 groups to clear between reads, eleven of fifteen
 * formats were slower. Few tokens past a float format, where all of a lane's additions wait for each other, take two groups,
 * a tile of each after the other: one past F16 streams 29 GB/s where it streamed 27 group by group.
 *
 * Of wide rows fewer groups fit L2, so each panel of x comes from L3 for fewer of them, and L3 is shared. So K is cut into segments: all
 * groups pass one segment before the next begins, and totals wait in out from segment to segment, which rounds nothing either.
 * 512 tokens on one Zen 5 thread, GMAC/s, beside a core that streams memory:
 *                                     Q4_K, K = 4096   8192  14336  18944    Q6_K, K = 4096   8192  14336  18944
 *   whole rows                                 367    340    305    280             285    261    230    205
 *   segments of 4096                           368    345    329    330             280    256    249    250
 *   segments of 2048                           370    348    342    346             282    263    266    265
 *   segments of 1536                           369    351    348    353             285    269    272    275
 *   segments of 1024                           371    340    340    338             289    267    272    271
 * (K = 4096 is not cut in any of these). On a quiet machine 1536 takes K = 14336 from 316 to 346 in Q4_K, 209 to 297 in Q8_0, 44 to 98 in
 * F16. 8 tokens would lose 2 to 13 %, and do not need it.
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

/* Rows of up to WHOLE_K are not cut, nor any where all of x takes no more than X_RESIDENT, which stays in L2 anyway. */
enum { WHOLE_K = 4096, SEGMENT_K = 1536, X_RESIDENT = 512 * 1024 };

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
    CHECK_INDEX(job->rows ? (size_t)job->rows[t] : t, job->out_rows);
    return job->out + (job->rows ? (size_t)job->rows[t] : t) * job->N;
}

/* How many of group g's 16 rows there are. */
static inline int rows_of_group(const struct linear_job *job, size_t g)
{
    size_t left = job->N - g * GROUP_ROWS;
    return left < GROUP_ROWS ? (int)left : GROUP_ROWS;
}

static inline void clear_totals(struct column column, float (*totals)[LANES])
{
    memset(totals, 0, column.columns * sizeof *totals);
}

/* What the segments before have left in out: float32, so nothing is rounded. */
static inline void load_totals(const struct linear_job *job, size_t g, struct column column, float (*totals)[LANES])
{
    for (size_t c = 0; c < column.columns; c++)
        f32_store(totals[c], f32_load_first(out_row(job, column.first + c) + g * GROUP_ROWS, rows_of_group(job, g)));
}

static inline void store_totals(const struct linear_job *job, size_t g, struct column column, float (*totals)[LANES])
{
    for (size_t c = 0; c < column.columns; c++)
        f32_store_first(out_row(job, column.first + c) + g * GROUP_ROWS, f32_load(totals[c]), rows_of_group(job, g));
}

/* What a panel is multiplied with: `count` groups from g on, blocks begin .. end - 1 of their k, `chunk` blocks at a time. */
struct extent { size_t g, count, begin, end, chunk; };

/* The panel that starts at token `first` times e. */
ALWAYS_INLINE void run_panel(
    const struct linear_job *job, enum format format, struct extent e, size_t first, tile_body *body)
{
    const struct format_info info = format_infos[format];
    const size_t x_nbytes = activation_nbytes(info.x, info.block_size), blocks = job->K / info.block_size;
    const size_t w_nbytes = GROUP_ROWS * info.block_nbytes, row = blocks * w_nbytes;
    const struct column column = column_of(first, job->T, TILE_COLUMNS);
    const char *x = (const char *)job->x + first * blocks * x_nbytes;
    CHECK_END((e.g + e.count) * row, job->weight_nbytes);
    CHECK_END((first + column.columns) * blocks * x_nbytes, job->x_nbytes);
    CHECK_END(e.count, MOST_GROUPS);
    group_totals totals[MOST_GROUPS];
    for (size_t b = e.begin, n; b < e.end; b += n) {
        n = e.end - b < e.chunk ? e.end - b : e.chunk;
        const size_t next = b + n < e.end ? n * w_nbytes - (e.count - 1) * row : row - (b - e.begin) * w_nbytes;
        for (size_t i = 0; i < e.count; i++) {
            if (!b) clear_totals(column, totals[i]);
            else if (b == e.begin) load_totals(job, e.g + i, column, totals[i]);
            struct tile t = {
                .weight = (const char *)job->weight + (e.g + i) * row + b * w_nbytes,
                .x = x + b * column.columns * x_nbytes,
                .columns = column.columns,
                .K = n * info.block_size,
                .ahead = (ptrdiff_t)(i + 1 < e.count ? row : next),
            };
            run_tiles(t, x_nbytes, totals[i], body);
            if (b + n == e.end) store_totals(job, e.g + i, column, totals[i]);
        }
    }
}

ALWAYS_INLINE void walk(const struct linear_job *job, enum format format, size_t g0, size_t g1, tile_body *body)
{
    const struct format_info info = format_infos[format];
    const size_t blocks = job->K / info.block_size, columns = job->T < TILE_COLUMNS ? job->T : TILE_COLUMNS;
    const int few = FEW(format, job->T), by_tiles = info.x == X_FLOAT && few;
    const int whole = few || job->K <= WHOLE_K || job->T * activation_nbytes(info.x, job->K) <= X_RESIDENT;
    const size_t segment = whole ? blocks : SEGMENT_K / info.block_size;
    const size_t fit = WEIGHTS_CACHED / (GROUP_ROWS * segment * info.block_nbytes + 1);
    const size_t most = by_tiles ? 2 : few || fit < 1 ? 1 : fit < MOST_GROUPS ? fit : MOST_GROUPS;
    const size_t chunk = by_tiles ? TILE_NBYTES / (GROUP_ROWS * info.block_nbytes)
                       : few      ? blocks
                                  : X_CACHED / (columns * activation_nbytes(info.x, info.block_size));
    for (size_t begin = 0, end; begin < blocks; begin = end) {
        end = blocks - begin < segment ? blocks : begin + segment;
        for (size_t g = g0, n; g < g1; g += n) {
            n = g1 - g < most ? g1 - g : most;
            for (size_t first = 0; first < job->T; first += TILE_COLUMNS)
                run_panel(job, format, (struct extent){g, n, begin, end, chunk}, first, body);
        }
    }
}

#endif
