/* One page of one kv head in the KV cache: 64 slots, keys then values, float16.
 *
 *   keys     [head_dim][64 slots]               a vector holds one e of 16 slots: scores need no sum across lanes
 *   values   [strip of 64 values][64][width]    sums over slots need none either; the last strip's width is what is left, padded to 16
 *
 * so that a tile, which works on 64 slots of keys and then on a strip of values, reads the page in order, as the hardware's
 * prefetch wants it.
 *
 * A cache is [page][kv head] of these.
 */
#ifndef OLLAMA_PAGE_H
#define OLLAMA_PAGE_H

#include <stddef.h>

enum { PAGE_SLOTS = 64, STRIP = 64 };

static inline size_t padded16(size_t n) { return (n + 15) / 16 * 16; }
static inline size_t keys_count(size_t head_dim) { return PAGE_SLOTS * head_dim; }
static inline size_t page_count(size_t head_dim) { return keys_count(head_dim) + PAGE_SLOTS * padded16(head_dim); }

/* Where values e, e + 16 .. of a slot's strip stand, from the first value, and how far apart slots are in that strip. */
static inline size_t strip_at(size_t e) { return e / STRIP * STRIP * PAGE_SLOTS + e % STRIP; }
static inline size_t strip_width(size_t e, size_t padded)
{
    size_t left = padded - e / STRIP * STRIP;
    return left < STRIP ? left : STRIP;
}

/* Float32 values that one attention tile works in, for up to 16 columns: queries, scores, sums of a page and of all. */
static inline size_t attention_scratch(size_t head_dim)
{
    return 16 * (head_dim + PAGE_SLOTS + 2 * padded16(head_dim));
}

#endif
