/* The loops around the tiles of linear.h: panels of tokens within groups of rows, so that a group's weights stay in cache. */
#ifndef OLLAMA_LINEAR_WALK_H
#define OLLAMA_LINEAR_WALK_H

#define X_CACHED (512 * 1024)   /* bytes of activations that one pass over the groups works on: half of a usual L2 */

typedef void tile_body(const int C, const struct tile *t, f32 *total);

/* Where column t of the job goes. */
ALWAYS_INLINE float *out_row(const struct linear_job *job, size_t t)
{
    return job->out + (job->rows ? (size_t)job->rows[t] : t) * job->N;
}

ALWAYS_INLINE void run_tile(const int C, const struct tile *t, const struct linear_job *job, size_t first, size_t g, tile_body *body)
{
    size_t n = g * GROUP_ROWS, rows = job->N - n;
    f32 total[TILE_COLUMNS];
    EACH_COLUMN(c) total[c] = f32_zero();
    body(C, t, total);
    if (rows >= GROUP_ROWS) {
        EACH_COLUMN(c) f32_store(out_row(job, first + c) + n, total[c]);
    } else {
        EACH_COLUMN(c) f32_store_first(out_row(job, first + c) + n, total[c], (int)rows);
    }
}

/* Columns of one panel by the largest tiles that fit. */
#define TILE_CASE(size) case size: run_tile(size, &t, job, first + done, g, body); break;
#define LARGEST(size) if (size <= left) n = size;

ALWAYS_INLINE void run_panel(const struct linear_job *job, enum format format, size_t g, size_t first, tile_body *body)
{
    enum activation kind = format_infos[format].x;
    struct column column = column_of(first, job->T, TILE_COLUMNS);
    size_t step = kind == X_FLOAT ? sizeof(float) : kind == X_32 ? sizeof(struct x32) : sizeof(struct x256);
    struct tile t = {
        .weight = (const char *)job->weight + g * GROUP_ROWS * row_nbytes(format, job->K),
        .columns = column.columns,
        .K = job->K,
    };
    for (size_t done = 0; done < column.columns;) {
        size_t left = column.columns - done, n = 1;
        t.x = (const char *)job->x + first * activation_nbytes(kind, job->K) + done * step;
        TILE_SIZES(LARGEST)
        switch (n) { TILE_SIZES(TILE_CASE) }
        done += n;
    }
}

ALWAYS_INLINE void walk(const struct linear_job *job, enum format format, size_t g0, size_t g1, tile_body *body)
{
    size_t panel = TILE_COLUMNS * activation_nbytes(format_infos[format].x, job->K);
    size_t block = (panel < X_CACHED ? X_CACHED / panel : 1) * TILE_COLUMNS;
    for (size_t t0 = 0; t0 < job->T; t0 += block) {
        size_t t1 = t0 + block < job->T ? t0 + block : job->T;
        for (size_t g = g0; g < g1; g++)
            for (size_t first = t0; first < t1; first += TILE_COLUMNS) run_panel(job, format, g, first, body);
    }
}

#define DEFINE_LINEAR(name, format)                                                \
    static void linear_##name(const struct linear_job *job, size_t g0, size_t g1) \
    {                                                                              \
        walk(job, format, g0, g1, tile_##name);                                    \
    }

DEFINE_LINEAR(f32, F32)
DEFINE_LINEAR(f16, F16)
DEFINE_LINEAR(bf16, BF16)
DEFINE_LINEAR(q4_0, Q4_0)
DEFINE_LINEAR(q4_1, Q4_1)
DEFINE_LINEAR(q5_0, Q5_0)
DEFINE_LINEAR(q5_1, Q5_1)
DEFINE_LINEAR(q8_0, Q8_0)
DEFINE_LINEAR(iq4_nl, IQ4_NL)
DEFINE_LINEAR(mxfp4, MXFP4)
DEFINE_LINEAR(q2_k, Q2_K)
DEFINE_LINEAR(q3_k, Q3_K)
DEFINE_LINEAR(q4_k, Q4_K)
DEFINE_LINEAR(q5_k, Q5_K)
DEFINE_LINEAR(q6_k, Q6_K)
DEFINE_LINEAR(iq4_xs, IQ4_XS)
DEFINE_LINEAR(grid, GRID)

#endif
