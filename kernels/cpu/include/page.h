/* One page of one kv head in the KV cache: 64 slots, keys then values, float16.
 *
 *   keys     [64 / 16][head_dim][16 slots]    a vector holds one e of 16 slots: scores need no sum across lanes
 *   values   [64][padded head_dim]            rows padded to 16: sums over slots need none either
 *
 * A cache is [page][kv head] of these.
 */
#ifndef OLLAMA_PAGE_H
#define OLLAMA_PAGE_H

#include <stddef.h>

enum { PAGE_SLOTS = 64 };

static inline size_t padded16(size_t n) { return (n + 15) / 16 * 16; }
static inline size_t keys_count(size_t head_dim) { return PAGE_SLOTS * head_dim; }
static inline size_t page_count(size_t head_dim) { return keys_count(head_dim) + PAGE_SLOTS * padded16(head_dim); }

/* Float32 values that one attention tile works in, for up to 16 columns: queries, scores, sums of a page and of all. */
static inline size_t attention_scratch(size_t head_dim)
{
    return 16 * (head_dim + PAGE_SLOTS + 2 * padded16(head_dim));
}

#endif
