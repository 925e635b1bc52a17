/* attention: query columns of one kv head over the pages of a sequence. Contract: ollama_zmq/ops/attention.py.
 *
 * Order of float operations, for one column (one query head of one token) with L slots to attend to:
 *
 *   q'        = q * scale
 *   score[s]  = fma over e of k[s, e] * q'[e]
 *   per page:   largest = max score; p[s] = exp(score[s] - largest), 0 past L
 *               sum = f32_sum_lanes((p[0:16] + p[16:32]) + (p[32:48] + p[48:64]));  o[e] = fma over s < L of p[s] * v[s, e]
 *   pages in order:  m' = max(m, largest), a = exp(m - m'), b = exp(largest - m')
 *                    m = m', l = fma(l, a, sum * b), O[e] = fma(O[e], a, o[e] * b);      the first page is taken as it is
 *   out[e]    = O[e] / l
 *
 * so a column does not depend on what else is in its tile, and pages may be cut over threads at any page. Slots past L are neither
 * added nor read as values: they hold whatever was there before.
 */
#ifndef OLLAMA_ATTENTION_H
#define OLLAMA_ATTENTION_H

#include "kernels.h"
#include "page.h"

/* A tile of C columns at work. */
struct columns {
    size_t E, padded, slots[TILE_COLUMNS], fewest, most;    /* slots[c]: how many column c attends to */
    float *q;           /* [E][C], scaled */
    float *p;           /* [C][64], scores and then weights of one page */
    float *o;           /* [C][padded], of one page */
    float *total;       /* [C][padded], of all pages so far */
    float m[TILE_COLUMNS], l[TILE_COLUMNS];
};

/* Scores of 16 * GROUPS slots, from slot 16 * first. */
ALWAYS_INLINE void scores_of(const int C, const int GROUPS, const struct columns *t, const uint16_t *keys, size_t first)
{
    f32 sum[GROUPS][C];
    const uint16_t *k = keys + first * 16;
    UNROLL for (int g = 0; g < GROUPS; g++) EACH_COLUMN(c) sum[g][c] = f32_zero();
    for (size_t e = 0; e < t->E; e++, k += PAGE_SLOTS) {
        UNROLL for (int g = 0; g < GROUPS; g++) {
            f32 key = f32_of_half(k + g * 16);
            EACH_COLUMN(c) sum[g][c] = f32_fma(key, f32_set(t->q[e * C + c]), sum[g][c]);
        }
    }
    UNROLL for (int g = 0; g < GROUPS; g++) EACH_COLUMN(c) f32_store(t->p + c * PAGE_SLOTS + (first + g) * 16, sum[g][c]);
}

ALWAYS_INLINE void page_scores(const int C, const struct columns *t, const uint16_t *keys, size_t groups)
{
    const int many = C * 4 <= 2 * TILE_COLUMNS ? 4 : C * 2 <= 2 * TILE_COLUMNS ? 2 : 1;
    size_t g = 0;
    for (; g + many <= groups; g += many) scores_of(C, many, t, keys, g);
    for (; g < groups; g++) scores_of(C, 1, t, keys, g);
}

/* Scores of one column -> weights relative to the largest; L slots of this page are its own. */
static inline void page_softmax(float *p, size_t L, float *largest, float *sum)
{
    f32 part[4], low = f32_set(-INFINITY);
    for (int g = 0; g < 4; g++) {
        int own = L < (size_t)g * 16 ? 0 : L - g * 16 < 16 ? (int)(L - g * 16) : 16;
        part[g] = own ? f32_first(own, f32_load(p + 16 * g), f32_set(-INFINITY)) : f32_set(-INFINITY);
        low = f32_max(low, part[g]);
    }
    *largest = f32_max_lane(low);
    for (int g = 0; g < 4; g++) {
        int own = L < (size_t)g * 16 ? 0 : L - g * 16 < 16 ? (int)(L - g * 16) : 16;
        part[g] = own ? f32_first(own, f32_exp(f32_sub(part[g], f32_set(*largest))), f32_zero()) : f32_zero();
        f32_store(p + 16 * g, part[g]);
    }
    *sum = f32_sum_lanes(f32_add(f32_add(part[0], part[1]), f32_add(part[2], part[3])));
}

/* o[e] of 16 * VECTORS values and C columns from p, over slots begin..end. */
ALWAYS_INLINE void add_values(
    const int C, const int VECTORS, const struct columns *t, size_t from, const uint16_t *values, size_t e, size_t begin, size_t end)
{
    f32 sum[VECTORS][C];
    UNROLL for (int v = 0; v < VECTORS; v++)
        EACH_COLUMN(c) sum[v][c] = begin ? f32_load(t->o + (from + c) * t->padded + e + 16 * v) : f32_zero();
    size_t width = strip_width(e, t->padded);
    const uint16_t *value_at = values + strip_at(e) + begin * width;
    for (size_t s = begin; s < end; s++, value_at += width) {
        UNROLL for (int v = 0; v < VECTORS; v++) {
            f32 value = f32_of_half(value_at + 16 * v);
            EACH_COLUMN(c) sum[v][c] = f32_fma(f32_set(t->p[(from + c) * PAGE_SLOTS + s]), value, sum[v][c]);
        }
    }
    UNROLL for (int v = 0; v < VECTORS; v++)
        EACH_COLUMN(c) f32_store(t->o + (from + c) * t->padded + e + 16 * v, sum[v][c]);
}

ALWAYS_INLINE void page_values(const int C, const struct columns *t, size_t from, const uint16_t *values, size_t begin, size_t end)
{
    const int many = C * 4 <= 2 * TILE_COLUMNS ? 4 : C * 2 <= 2 * TILE_COLUMNS ? 2 : 1;
    for (size_t e = 0; e < t->padded;) {
        size_t left = strip_width(e, t->padded) - e % STRIP;
        if (left >= 16 * (size_t)many) {
            add_values(C, many, t, from, values, e, begin, end);
            e += 16 * many;
        } else {
            add_values(C, 1, t, from, values, e, begin, end);
            e += 16;
        }
    }
}

/* Add column c's page to its total. */
static inline void merge_page(struct columns *t, int c, float largest, float sum, int is_first)
{
    float *o = t->o + c * t->padded, *total = t->total + c * t->padded;
    if (is_first) {
        t->m[c] = largest;
        t->l[c] = sum;
        memcpy(total, o, t->padded * sizeof *o);
        return;
    }
    float m = t->m[c] > largest ? t->m[c] : largest, scale[LANES];
    f32_store(scale, f32_exp(f32_first(1, f32_set(t->m[c] - m), f32_set(largest - m))));
    f32 a = f32_set(scale[0]), b = f32_set(scale[1]);
    t->m[c] = m;
    t->l[c] = fmaf(t->l[c], scale[0], sum * scale[1]);
    for (size_t e = 0; e < t->padded; e += 16)
        f32_store(total + e, f32_fma(f32_load(total + e), a, f32_mul(f32_load(o + e), b)));
}

ALWAYS_INLINE void attend_page(const int C, struct columns *t, const uint16_t *page, size_t first_slot)
{
    const uint16_t *values = page + keys_count(t->E);
    size_t common = t->fewest <= first_slot ? 0 : t->fewest - first_slot < PAGE_SLOTS ? t->fewest - first_slot : PAGE_SLOTS;
    size_t most = t->most - first_slot < PAGE_SLOTS ? t->most - first_slot : PAGE_SLOTS;
    float largest[C], sum[C];
    page_scores(C, t, page, (most + 15) / 16);
    for (int c = 0; c < C; c++)
        if (t->slots[c] > first_slot) page_softmax(t->p + c * PAGE_SLOTS, t->slots[c] - first_slot, &largest[c], &sum[c]);
    if (common) page_values(C, t, 0, values, 0, common);
    for (int c = 0; c < C; c++) {
        if (t->slots[c] <= first_slot) continue;
        size_t own = t->slots[c] - first_slot < PAGE_SLOTS ? t->slots[c] - first_slot : PAGE_SLOTS;
        if (own > common) page_values(1, t, c, values, common, own);
        merge_page(t, c, largest[c], sum[c], first_slot == 0);
    }
}

ALWAYS_INLINE void attend(const int C, const struct attention_job *job, size_t first)
{
    size_t E = job->head_dim, padded = padded16(E);
    struct columns t = {.E = E, .padded = padded, .q = job->scratch, .fewest = SIZE_MAX};
    t.p = t.q + C * E;
    t.o = t.p + C * PAGE_SLOTS;
    t.total = t.o + C * padded;
    for (int c = 0; c < C; c++) {
        size_t token = (first + c) / job->group, head = (first + c) % job->group;
        const float *q = job->q + token * job->row_stride + head * E;
        for (size_t e = 0; e < E; e++) t.q[e * C + c] = q[e] * job->scale;
        t.slots[c] = job->position + token + 1;
        if (t.slots[c] < t.fewest) t.fewest = t.slots[c];
        if (t.slots[c] > t.most) t.most = t.slots[c];
    }
    for (size_t slot = 0; slot < t.most; slot += PAGE_SLOTS)
        attend_page(C, &t, job->cache + (size_t)job->pages[slot / PAGE_SLOTS] * job->page_stride, slot);
    for (int c = 0; c < C; c++) {
        size_t token = (first + c) / job->group, head = (first + c) % job->group;
        float *out = job->out + token * job->row_stride + head * E;
        for (size_t e = 0; e < E; e += 16) {
            f32 value = f32_div(f32_load(t.total + c * padded + e), f32_set(t.l[c]));
            f32_store_first(out + e, value, E - e < 16 ? (int)(E - e) : 16);
        }
    }
}

#define ATTEND_LARGEST(size) if (size <= end - first) n = size;
#define ATTEND_CASE(size) case size: attend(size, job, first); break;

static void attention(const struct attention_job *job, size_t first, size_t end)
{
    while (first < end) {
        size_t n = 1;
        TILE_SIZES(ATTEND_LARGEST)
        switch (n) { TILE_SIZES(ATTEND_CASE) }
        first += n;
    }
}

#endif
