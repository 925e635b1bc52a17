/* One page of one kv head in the paged KV cache of paged attention: 64 slots, keys then values.
 * A cache is [page][kv head] of these.
 *
 *   f16    keys     [head_dim][64 slots]                       float16: a vector holds one e of 16 slots, so scores need no sum across lanes
 *          values   strips of up to 64 values, [64 slots][width] float16 each
 *   q8_0   keys     blocks of 32 e: bytes [8][64 slots][4] with 128 added, then the slots' scales, float16 [64]
 *          values   strips: the scales of their blocks, float16 [width / 32][64 slots], then signed bytes [64 slots][width]
 *
 * A slot's 32 values of a q8_0 block share one scale, 34 bytes for 32 numbers as in a file. Values are padded to 16 (f16) or 32
 * (q8_0), keys to 32 (q8_0). A tile, which works on 64 slots of keys and then on a strip of values, reads a page in order, as the
 * hardware's prefetch wants it.
 *
 * 8 pages are a KV split, which begins at a multiple of 512 slots: attention.h sums up each split, then joins them.
 */
#ifndef OLLAMA_PAGE_H
#define OLLAMA_PAGE_H

#include <stddef.h>
#include <stdint.h>

enum { PAGE_SLOTS = 64, STRIP = 64, SPLIT_PAGES = 8, SPLIT_SLOTS = SPLIT_PAGES * PAGE_SLOTS };
enum kv_type { KV_F16, KV_Q8_0, KV_TYPES };

/* How a kv head is kept: its type, and the sizes of one key and one value. */
struct kv_head { enum kv_type type; size_t keys, values; };

enum { Q8_KEYS_NBYTES = 32 * PAGE_SLOTS, Q8_BLOCK_NBYTES = 34 * PAGE_SLOTS };  /* of the 64 slots' blocks: without scales, with them */

static inline size_t padded16(size_t n) { return (n + 15) / 16 * 16; }
static inline size_t padded32(size_t n) { return (n + 31) / 32 * 32; }

static inline size_t padded_values(const struct kv_head *head)
{
    return head->type == KV_F16 ? padded16(head->values) : padded32(head->values);
}

static inline size_t keys_nbytes(const struct kv_head *head)
{
    return head->type == KV_F16 ? 2 * PAGE_SLOTS * head->keys : padded32(head->keys) / 32 * Q8_BLOCK_NBYTES;
}

static inline size_t page_nbytes(const struct kv_head *head)
{
    size_t values = padded_values(head);
    return keys_nbytes(head) + (head->type == KV_F16 ? 2 * PAGE_SLOTS * values : values / 32 * Q8_BLOCK_NBYTES);
}

/* The width of the strip that value e is in. */
static inline size_t strip_width(size_t e, size_t padded)
{
    size_t left = padded - e / STRIP * STRIP;
    return left < STRIP ? left : STRIP;
}

/* The partial softmax state (m, l, o) of one column over some slots: the largest score, the sum of exp(score - m), 14 unused, then the
 * sum of values weighted by that. */
enum { MAX_SCORE, SUM_EXP, WEIGHTED_V = 16 };

static inline size_t state_floats(const struct kv_head *head) { return WEIGHTED_V + padded_values(head); }

/* Columns that attention takes at a time: each page is read from the second-level cache by 4 to 48 tiles. 12 are a tile at most.
 * Few, as in decoding, wait for memory: they ask for the cache lines of the next page. */
enum { BLOCK_COLUMNS = 48, MOST_COLUMNS = 12, DECODED_COLUMNS = 6 };

/* Float32 values that a block works in: queries; weights of a tile, also times scales; softmax states of a split and of all. */
static inline size_t attention_scratch(const struct kv_head *head)
{
    return BLOCK_COLUMNS * (padded32(head->keys) + 2 * state_floats(head)) + 3 * MOST_COLUMNS * PAGE_SLOTS;
}

#endif
