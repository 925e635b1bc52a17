/* attention: query columns of one kv head over the pages of a sequence. Contract: ollama_zmq/ops/attention.py.
 *
 * Paged attention with an online softmax, and flash-decoding (split-KV) over it: the cache is cut in KV splits of 512 slots, each of which
 * leaves a partial softmax state (m, l, o), and the states are joined in the order of splits, whoever made them.
 *
 * Order of float operations, for one column (one query head of one token), which attends to slots begin .. end - 1:
 *
 *   score[s]  = scores of attention/f16.h or attention/q8.h;  softcap * tanh(score[s] / softcap) if there is one
 *   KV splits (page.h), each from m = -inf, l = 0, o = 0; its pages in order:
 *               m' = max(m, largest score);  if that changed anything, a = exp(m - m'), l = l * a, o[e] = o[e] * a
 *               p[s] = exp(score[s] - m'), 0 outside begin .. end
 *               l = l + f32_sum_lanes((p[0:16] + p[16:32]) + (p[32:48] + p[48:64]));  o[e] = fma over own s of p[s] * v[s, e]
 *   splits in order:  the first as it is, then  m' = max(m, m_split), a = exp(m - m'), b = exp(m_split - m')
 *                   l = fma(l, a, l_split * b), O[e] = fma(O[e], a, o_split[e] * b)
 *   out[e]    = O[e] / l;  with a sink: m' = max(m, sink), a = exp(m - m'),  (O[e] * a) / fma(l, a, exp(sink - m'))
 *
 * so a column does not depend on what else is in its tile, and any thread may attend to a split. Slots outside begin .. end are
 * neither added nor read as values: they hold whatever was there before. Splits and pages that no column attends to are not read.
 *
 * A block of up to 48 columns takes a page at a time, in tiles of up to 12 (6 where 16 registers hold them): a page is 32 KB at
 * head_dim 128, which the second-level cache keeps for the next tile. At 89 of 117 GFLOP/s a thread, tiles alone would read 10 GB/s, which
 * is there for two threads but not for many; blocks read 2.5. Asking for the next page a page ahead, line by line as this one is
 * multiplied, takes decoding on AVX2 from 7.7 to 17.9 GB/s a thread.
 */
#ifndef OLLAMA_ATTENTION_H
#define OLLAMA_ATTENTION_H

#include "attention/f16.h"
#include "attention/q8.h"
#include "kernels.h"

#if ACCUMULATORS >= 24
#define COLUMN_SIZES(size) size(1) size(2) size(3) size(4) size(6) size(8) size(12)
#elif ACCUMULATORS >= 6
#define COLUMN_SIZES(size) size(1) size(2) size(3) size(4) size(6)
#else
#define COLUMN_SIZES(size) size(1)
#endif

/* Columns at work. */
struct block {
    const struct attention_job *job;
    size_t count, padded, state_floats;                 /* columns; values of o; floats of a softmax state */
    size_t begin[BLOCK_COLUMNS], end[BLOCK_COLUMNS];    /* slots that each attends to */
    size_t first_slot, end_slot;                        /* that any attends to */
    size_t query_nbytes;                                /* of a column */
    char *queries;                                      /* tiles, packed */
    float *p, *scaled;                                  /* of one tile: weights [C][64]; times scales [C][2][64] */
};

static inline size_t tile_size(size_t left)
{
    size_t n = 1;
#define LARGEST_TILE(size) if (size <= left) n = size;
    COLUMN_SIZES(LARGEST_TILE)
    return n;
}

static void open_block(struct block *b, const struct attention_job *job, size_t first, size_t count)
{
    size_t E = job->head.keys;
    *b = (struct block){.job = job, .count = count, .padded = padded_values(&job->head), .state_floats = state_floats(&job->head)};
    b->first_slot = SIZE_MAX;
    b->query_nbytes = sizeof(float) * (job->head.type == KV_F16 ? E : padded32(E) / 32 * (sizeof(struct query_block) / sizeof(float)));
    b->queries = (char *)job->scratch;
    b->p = job->scratch + BLOCK_COLUMNS * padded32(E);
    b->scaled = b->p + MOST_COLUMNS * PAGE_SLOTS;
    for (size_t tile = 0, C; tile < count; tile += C) {
        C = tile_size(count - tile);
        for (size_t c = 0; c < C; c++) {
            size_t token = (first + tile + c) / job->group, head = (first + tile + c) % job->group, end = job->position + token + 1;
            const float *q = job->q + (token * job->n_heads + head) * E;
            char *packed = b->queries + tile * b->query_nbytes;
            if (job->head.type == KV_F16) pack_query_f16(q, E, job->scale, packed, C, c);
            else pack_query_q8(q, E, job->scale, packed, C, c);
            b->end[tile + c] = end;
            b->begin[tile + c] = end > job->window ? end - job->window : 0;
            if (b->begin[tile + c] < b->first_slot) b->first_slot = b->begin[tile + c];
            if (end > b->end_slot) b->end_slot = end;
        }
    }
}

static inline f32 capped(f32 score, float softcap)
{
    f32 twice = f32_mul(score, f32_set(2.0f / softcap)), one = f32_set(1.0f);
    f32 tanh = f32_sub(one, f32_div(f32_set(2.0f), f32_add(f32_exp(twice), one)));
    return f32_mul(tanh, f32_set(softcap));
}

static inline int lanes_of(size_t slot, int g) { return slot <= (size_t)g * 16 ? 0 : slot - g * 16 < 16 ? (int)(slot - g * 16) : 16; }

/* Scores of slots begin .. end - 1 of a page into weights, in place; the column's softmax state follows: its o is on the new scale. */
ALWAYS_INLINE void page_softmax(const int WHOLE, float *p, size_t begin, size_t end, float softcap, float *state, size_t padded)
{
    f32 part[4], none = f32_set(-INFINITY), largest = none;
    UNROLL for (int g = 0; g < 4; g++) {
        part[g] = WHOLE || lanes_of(begin, g) < lanes_of(end, g) ? f32_load(p + 16 * g) : none;
        if (softcap > 0) part[g] = capped(part[g], softcap);
        if (!WHOLE) part[g] = f32_first(lanes_of(begin, g), none, f32_first(lanes_of(end, g), part[g], none));
        largest = f32_max(largest, part[g]);
    }
    float before = state[MAX_SCORE], page = f32_max_lane(largest), after = before > page ? before : page;
    UNROLL for (int g = 0; g < 4; g++) {
        part[g] = f32_exp(f32_sub(part[g], f32_set(after)));
        if (!WHOLE) part[g] = f32_first(lanes_of(begin, g), f32_zero(), f32_first(lanes_of(end, g), part[g], f32_zero()));
        f32_store(p + 16 * g, part[g]);
    }
    if (after != before) {
        float scale[LANES];
        f32_store(scale, f32_exp(f32_set(before - after)));
        state[MAX_SCORE] = after;
        state[SUM_EXP] *= scale[0];
        float *o = state + WEIGHTED_V;
        for (size_t e = 0; e < padded; e += 16) f32_store(o + e, f32_mul(f32_load(o + e), f32_set(scale[0])));
    }
    state[SUM_EXP] += f32_sum_lanes(f32_add(f32_add(part[0], part[1]), f32_add(part[2], part[3])));
}

ALWAYS_INLINE void add_values(
    const int C, const enum kv_type TYPE, const struct block *b, size_t from, const char *page, ptrdiff_t ahead, size_t begin, size_t end, float *state)
{
    const float *p = b->p + from * PAGE_SLOTS;
    const char *values = page + keys_nbytes(&b->job->head);
    if (TYPE == KV_F16) page_values_f16(C, p, values, b->padded, ahead, begin, end, state + WEIGHTED_V, b->state_floats);
    else page_values_q8(C, p, values, b->padded, ahead, begin, end, state + WEIGHTED_V, b->state_floats, b->scaled);
}

/* Columns tile .. tile + C - 1 over the page that begins at `slot`. What all attend to is added together, the rest column by column. */
ALWAYS_INLINE void attend_page(
    const int C, const enum kv_type TYPE, const struct block *b, size_t tile, const char *page, ptrdiff_t ahead, size_t slot, float *states)
{
    size_t begin[C], end[C], least = PAGE_SLOTS, most = 0, from = 0, to = PAGE_SLOTS;     /* least .. most: any; from .. to: all */
    for (int c = 0; c < C; c++) {
        begin[c] = b->begin[tile + c] <= slot ? 0 : b->begin[tile + c] - slot < PAGE_SLOTS ? b->begin[tile + c] - slot : PAGE_SLOTS;
        end[c] = b->end[tile + c] <= slot ? 0 : b->end[tile + c] - slot < PAGE_SLOTS ? b->end[tile + c] - slot : PAGE_SLOTS;
        if (begin[c] < least) least = begin[c];
        if (end[c] > most) most = end[c];
        if (begin[c] > from) from = begin[c];
        if (end[c] < to) to = end[c];
    }
    if (least >= most) return;
    const char *q = b->queries + tile * b->query_nbytes;
    if (TYPE == KV_F16) page_scores_f16(C, q, b->job->head.keys, page, ahead, least / 16, (most + 15) / 16, b->p);
    else page_scores_q8(C, q, b->job->head.keys, page, ahead, least / 16, (most + 15) / 16, b->p);
    for (int c = 0; c < C; c++) {
        float *state = states + (tile + c) * b->state_floats;
        if (begin[c] == 0 && end[c] == PAGE_SLOTS) page_softmax(1, b->p + c * PAGE_SLOTS, 0, PAGE_SLOTS, b->job->softcap, state, b->padded);
        else if (begin[c] < end[c]) page_softmax(0, b->p + c * PAGE_SLOTS, begin[c], end[c], b->job->softcap, state, b->padded);
    }
    if (from >= to) from = to = PAGE_SLOTS;
    for (int c = 0; c < C; c++) {
        size_t last = end[c] < from ? end[c] : from;
        if (begin[c] < last) add_values(1, TYPE, b, c, page, 0, begin[c], last, states + (tile + c) * b->state_floats);
    }
    if (from < to) add_values(C, TYPE, b, 0, page, ahead, from, to, states + tile * b->state_floats);
    for (int c = 0; c < C; c++)
        if (to < end[c]) add_values(1, TYPE, b, c, page, 0, to, end[c], states + (tile + c) * b->state_floats);
}

#define ATTEND_F16(size) case size: attend_page(size, KV_F16, b, tile, page, ahead, slot, states); break;
#define ATTEND_Q8(size) case size: attend_page(size, KV_Q8_0, b, tile, page, ahead, slot, states); break;

static void attend_page_by_tiles(const struct block *b, const char *page, ptrdiff_t ahead, size_t slot, float *states)
{
    for (size_t tile = 0, C; tile < b->count; tile += C, ahead = 0) {
        C = tile_size(b->count - tile);
        if (b->job->head.type == KV_F16) switch (C) { COLUMN_SIZES(ATTEND_F16) }
        else switch (C) { COLUMN_SIZES(ATTEND_Q8) }
    }
}

/* All columns over one KV split, into softmax states that are made here. */
static void attend_split(const struct block *b, size_t split, float *states)
{
    const struct attention_job *job = b->job;
    for (size_t c = 0; c < b->count; c++) {
        float *state = memset(states + c * b->state_floats, 0, b->state_floats * sizeof *state);
        state[MAX_SCORE] = -INFINITY;
    }
    size_t slot = split * SPLIT_SLOTS, end = slot + SPLIT_SLOTS < b->end_slot ? slot + SPLIT_SLOTS : b->end_slot;
    if (slot < b->first_slot) slot = b->first_slot / PAGE_SLOTS * PAGE_SLOTS;
    for (; slot < end; slot += PAGE_SLOTS) {
        size_t next = slot + PAGE_SLOTS < b->end_slot ? slot + PAGE_SLOTS : slot;
        CHECK_INDEX(next / PAGE_SLOTS, job->table_pages);
        CHECK_INDEX(job->pages[slot / PAGE_SLOTS], job->kv_pages);
        const char *page = job->cache + job->pages[slot / PAGE_SLOTS] * job->page_stride;
        attend_page_by_tiles(b, page, job->cache + job->pages[next / PAGE_SLOTS] * job->page_stride - page, slot, states);
    }
}

/* Add one column's softmax state of a split to its total. */
static void join_split(float *total, const float *split, size_t padded, int is_first)
{
    if (is_first) {
        memcpy(total, split, (WEIGHTED_V + padded) * sizeof *total);
        return;
    }
    float m = total[MAX_SCORE] > split[MAX_SCORE] ? total[MAX_SCORE] : split[MAX_SCORE], scale[LANES];
    f32_store(scale, f32_exp(f32_first(1, f32_set(total[MAX_SCORE] - m), f32_set(split[MAX_SCORE] - m))));
    f32 a = f32_set(scale[0]), b = f32_set(scale[1]);
    total[MAX_SCORE] = m;
    total[SUM_EXP] = fmaf(total[SUM_EXP], scale[0], split[SUM_EXP] * scale[1]);
    for (size_t e = WEIGHTED_V; e < WEIGHTED_V + padded; e += 16)
        f32_store(total + e, f32_fma(f32_load(total + e), a, f32_mul(f32_load(split + e), b)));
}

static void write_column(const struct attention_job *job, size_t column, const float *total)
{
    size_t token = column / job->group, head = column % job->group, F = job->head.values;
    float *out = job->out + (token * job->n_heads + head) * F, scale[LANES] = {1.0f}, weights = total[SUM_EXP];
    if (job->sinks) {
        float sink = job->sinks[head], m = total[MAX_SCORE] > sink ? total[MAX_SCORE] : sink;
        f32_store(scale, f32_exp(f32_first(1, f32_set(total[MAX_SCORE] - m), f32_set(sink - m))));
        weights = fmaf(weights, scale[0], scale[1]);
    }
    for (size_t e = 0; e < F; e += 16) {
        f32 value = f32_div(f32_mul(f32_load(total + WEIGHTED_V + e), f32_set(scale[0])), f32_set(weights));
        f32_store_first(out + e, value, F - e < 16 ? (int)(F - e) : 16);
    }
}

/* Columns first .. first + count - 1, at most a block, over one KV split: their partial softmax states into states [count]. */
static void attention_split(const struct attention_job *job, size_t first, size_t count, size_t split, float *states)
{
    struct block b;
    open_block(&b, job, first, count);
    attend_split(&b, split, states);
}

/* One column: its softmax states of the splits it attends to, joined in the first one and written out. They stand `stride` floats apart,
 * from split first_split on. */
static void attention_join(const struct attention_job *job, size_t column, float *states, size_t stride, size_t first_split)
{
    size_t end = job->position + column / job->group + 1, first = end > job->window ? (end - job->window) / SPLIT_SLOTS : 0;
    float *total = states + (first - first_split) * stride;
    for (size_t split = first + 1; split * SPLIT_SLOTS < end; split++)
        join_split(total, states + (split - first_split) * stride, padded_values(&job->head), 0);
    write_column(job, column, total);
}

/* Columns first .. first + count - 1, at most a block, over all their slots. */
static void attention(const struct attention_job *job, size_t first, size_t count)
{
    struct block b;
    open_block(&b, job, first, count);
    float *states = b.scaled + 2 * MOST_COLUMNS * PAGE_SLOTS, *totals = states + BLOCK_COLUMNS * b.state_floats;
    size_t splits = (b.end_slot - 1) / SPLIT_SLOTS + 1;
    for (size_t split = b.first_slot / SPLIT_SLOTS; split < splits; split++) {
        attend_split(&b, split, states);
        for (size_t c = 0; c < count; c++)
            if (b.begin[c] < (split + 1) * SPLIT_SLOTS && b.end[c] > split * SPLIT_SLOTS)
                join_split(totals + c * b.state_floats, states + c * b.state_floats, b.padded, b.begin[c] / SPLIT_SLOTS == split);
    }
    for (size_t c = 0; c < count; c++) write_column(job, first + c, totals + c * b.state_floats);
}

#endif
