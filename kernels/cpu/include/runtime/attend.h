/* How attention is cut over threads: flash-decoding where it pays.
 *
 *   many columns          a piece is a block of columns of one kv head over all splits of its slots
 *   few, long contexts    a piece is a block over one KV split; after a barrier, a column's softmax states are joined in order
 *
 * Both do the same operations in the same order (attention.h). The second needs memory for the softmax states, which is there
 * for one token of every sequence: what decoding takes.
 */
#ifndef OLLAMA_ATTEND_H
#define OLLAMA_ATTEND_H

#include "runtime/checks.h"
#include "runtime/steps.h"

static inline char *page_of(const void *cache, int32_t page, size_t kv_head, size_t n_kv_heads, const struct kv_head *head)
{
    return (char *)cache + ((size_t)page * n_kv_heads + kv_head) * page_nbytes(head);
}

/* What attention has to do for sequence b of the pass: columns of each kv head, in blocks, over `splits` KV splits from first_split on. */
struct sequence { size_t tokens, columns, blocks, first_split, splits; };

static struct sequence sequence_of(const struct program *p, const struct attention_op *op, size_t b)
{
    const int32_t *first = p->pass.first_token + b;
    size_t tokens = (size_t)(first[1] - first[0]), columns = tokens * (op->n_heads / op->n_kv_heads);
    size_t end = (size_t)p->pass.positions[first[0]] + 1, first_split = end > op->window ? (end - op->window) / SPLIT_SLOTS : 0;
    size_t splits = (end + tokens - 2) / SPLIT_SLOTS + 1 - first_split;
    return (struct sequence){tokens, columns, (columns + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS, first_split, splits};
}

static struct attention_job job_of(const struct program *p, const struct attention_op *op, size_t b, size_t g, int thread)
{
    size_t first = (size_t)p->pass.first_token[b], group = op->n_heads / op->n_kv_heads, head = first * op->n_heads + g * group;
    return (struct attention_job){
        .q = op->q + head * op->head.keys,
        .out = op->out + head * op->head.values,
        .cache = page_of(op->cache, 0, g, op->n_kv_heads, &op->head),
        .pages = p->pass.tables[b],
        .sinks = op->sinks ? op->sinks + g * group : NULL,
        .page_stride = op->n_kv_heads * page_nbytes(&op->head),
        .head = op->head,
        .n_heads = op->n_heads,
        .group = group,
        .position = (size_t)p->pass.positions[first],
        .window = op->window,
        .scale = op->scale,
        .softcap = op->softcap,
        .scratch = p->scratch + (size_t)thread * p->thread_scratch,
        CHECKED(.table_pages = (size_t)p->pass.table_pages[b], .kv_pages = p->kv_pages, )
    };
}

static size_t block_columns(const struct sequence *s, size_t block)
{
    return s->columns - block * BLOCK_COLUMNS < BLOCK_COLUMNS ? s->columns - block * BLOCK_COLUMNS : BLOCK_COLUMNS;
}

static void attend_whole(const struct program *p, const struct attention_op *op, int thread)
{
    long pieces = 0, taken;
    for (size_t b = 0; b < p->pass.B; b++) pieces += (long)(sequence_of(p, op, b).blocks * op->n_kv_heads);
    while (pool_take(p->pool, thread, pieces, 1, &taken)) {
        size_t left = (size_t)(pieces - 1 - taken), b = p->pass.B - 1;      /* the last blocks see the most slots: they go first */
        struct sequence s = sequence_of(p, op, b);
        size_t before = (size_t)pieces - s.blocks * op->n_kv_heads;
        while (left < before) s = sequence_of(p, op, --b), before -= s.blocks * op->n_kv_heads;
        size_t block = (left - before) / op->n_kv_heads;
        struct attention_job job = job_of(p, op, b, (left - before) % op->n_kv_heads, thread);
        p->kernels->attention(&job, block * BLOCK_COLUMNS, block_columns(&s, block));
    }
}

/* Whether there is more than one split, and room for the softmax states of all. Every thread comes to the same answer. */
static int is_cut(const struct program *p, const struct attention_op *op)
{
    size_t floats = 0, most = 0;
    for (size_t b = 0; b < p->pass.B; b++) {
        struct sequence s = sequence_of(p, op, b);
        floats += s.columns * op->n_kv_heads * s.splits * state_floats(&op->head);
        if (s.splits > most) most = s.splits;
    }
    return most > 1 && floats <= p->n_state_floats;
}

/* Softmax states stand [sequence][kv head][split][column]. */
static void attend_splits(const struct program *p, const struct attention_op *op, int thread)
{
    size_t floats = state_floats(&op->head);
    long pieces = 0, taken;
    for (size_t b = 0; b < p->pass.B; b++) {
        struct sequence s = sequence_of(p, op, b);
        pieces += (long)(s.blocks * op->n_kv_heads * s.splits);
    }
    while (pool_take(p->pool, thread, pieces, 1, &taken)) {
        size_t left = (size_t)taken, b = 0;
        float *states = p->softmax_states;
        struct sequence s = sequence_of(p, op, b);
        while (left >= s.blocks * op->n_kv_heads * s.splits) {
            left -= s.blocks * op->n_kv_heads * s.splits;
            states += s.columns * op->n_kv_heads * s.splits * floats;
            s = sequence_of(p, op, ++b);
        }
        size_t split = left % s.splits, block = left / s.splits % s.blocks, g = left / s.splits / s.blocks;
        struct attention_job job = job_of(p, op, b, g, thread);
        states += ((g * s.splits + split) * s.columns + block * BLOCK_COLUMNS) * floats;
        CHECK_END((size_t)(states - p->softmax_states) + block_columns(&s, block) * floats, p->n_state_floats);
        p->kernels->attention_split(&job, block * BLOCK_COLUMNS, block_columns(&s, block), s.first_split + split, states);
    }
}

static void join_splits(const struct program *p, const struct attention_op *op, int thread)
{
    size_t floats = state_floats(&op->head);
    long columns = 0, taken;
    for (size_t b = 0; b < p->pass.B; b++) columns += (long)(sequence_of(p, op, b).columns * op->n_kv_heads);
    while (pool_take(p->pool, thread, columns, 1, &taken)) {
        size_t left = (size_t)taken, b = 0;
        float *states = p->softmax_states;
        struct sequence s = sequence_of(p, op, b);
        while (left >= s.columns * op->n_kv_heads) {
            left -= s.columns * op->n_kv_heads;
            states += s.columns * op->n_kv_heads * s.splits * floats;
            s = sequence_of(p, op, ++b);
        }
        size_t g = left / s.columns, column = left % s.columns;
        struct attention_job job = job_of(p, op, b, g, thread);
        p->kernels->attention_join(&job, column, states + (g * s.splits * s.columns + column) * floats, s.columns * floats, s.first_split);
    }
}

static void run_attention(const struct program *p, const struct attention_op *op, int thread)
{
    check_attention(p, op);
    if (!is_cut(p, op)) {
        attend_whole(p, op, thread);
        return;
    }
    attend_splits(p, op, thread);
    pool_barrier(p->pool, thread);
    join_splits(p, op, thread);
}

#endif
