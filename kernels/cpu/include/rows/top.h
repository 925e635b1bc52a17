/* The k largest of V logits in order, the lowest id among equals: in two looks (logits.h) and a sort of the few that are left.
 *
 * The first look takes the maxima of n_columns interleaved columns. Their k-th largest is reached by at least k logits, one in each of
 * k columns, and by few more, so the second look finds nearly only those that are wanted. They are sorted by radix, three times 11
 * bits, which is stable and costs 4 us at least; so is all of a row where k is a large part of it.
 *
 *   V = 262144, one core       k = 40    0.05 ms    all V    1.4 ms     (NumPy: 0.09 in the same two looks, and 28)
 */
#ifndef OLLAMA_TOP_H
#define OLLAMA_TOP_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

enum { LEAST = 16, NARROW = 1024, WIDE = 16384 };   /* columns */
enum { RADIX_BITS = 11, RADIX = 1 << RADIX_BITS, RADIX_PASSES = 3, INFINITY_BITS = 0x7f800000 };

/* Rises as the float falls; both zeros are one. */
static inline uint32_t falling_key(float x)
{
    uint32_t bits;
    x += 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 31 ? bits : bits ^ 0x7fffffff;
}

/* The k-th smallest of n keys, bit by bit from the highest: the largest number that at most k - 1 keys are below. */
static uint32_t kth_key(const uint32_t *keys, size_t n, size_t k)
{
    uint32_t found = 0;
    for (int bit = 31; bit >= 0; bit--) {
        uint32_t tried = found | 1u << bit;
        size_t below = 0;
        for (size_t i = 0; i < n; i++) below += keys[i] < tried;
        if (below < k) found = tried;
    }
    return found;
}

/* A record is key << 32 | id. Returns where the sorted ones are: a or b. */
static uint64_t *radix_sorted(uint64_t *a, uint64_t *b, size_t n)
{
    uint32_t counts[RADIX_PASSES][RADIX] = {{0}};
    for (size_t i = 0; i < n; i++)
        for (int pass = 0; pass < RADIX_PASSES; pass++) counts[pass][a[i] >> (32 + RADIX_BITS * pass) & (RADIX - 1)]++;
    for (int pass = 0; pass < RADIX_PASSES; pass++) {
        uint32_t *place = counts[pass], next = 0;
        for (int digit = 0; digit < RADIX; digit++) {
            uint32_t count = place[digit];
            place[digit] = next;
            next += count;
        }
        for (size_t i = 0; i < n; i++) b[place[a[i] >> (32 + RADIX_BITS * pass) & (RADIX - 1)]++] = a[i];
        uint64_t *sorted = b;
        b = a;
        a = sorted;
    }
    return a;
}

static inline float float_of_key(uint32_t key)
{
    uint32_t bits = key >> 31 ? key : key ^ 0x7fffffff;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Columns of the first look, or 0 where it would not pay. */
static size_t columns_for(size_t V, size_t k)
{
    size_t columns = 2 * k <= NARROW ? NARROW : WIDE;
    return 2 * k <= columns && 2 * columns <= V ? columns : 0;
}

/* A value that at least k of the maxima reach. */
static float kth_largest(const float *maxima, size_t n, size_t k)
{
    uint32_t keys[WIDE];
    for (size_t c = 0; c < n; c++) keys[c] = falling_key(maxima[c]);
    return float_of_key(kth_key(keys, n, k));
}

static size_t first_nan(const float *logits, size_t V)
{
    size_t i = 0;
    while (i < V && !isnan(logits[i])) i++;
    return i;
}

/* Sort n ids by their logits. Returns 0, or -1 without memory. */
static int sort_ids(const float *logits, const int32_t *found, size_t n, int64_t *ids, size_t k)
{
    uint64_t *records = (uint64_t *)malloc(2 * n * sizeof *records);
    if (!records) return -1;
    for (size_t i = 0; i < n; i++) {
        uint32_t id = found ? (uint32_t)found[i] : (uint32_t)i;
        records[i] = (uint64_t)falling_key(logits[id]) << 32 | id;
    }
    const uint64_t *sorted = radix_sorted(records, records + n, n);
    for (size_t i = 0; i < k; i++) ids[i] = (uint32_t)sorted[i];
    free(records);
    return 0;
}

/* The k largest of V >= k >= 1. Returns how many, or -1 without memory. A NaN counts as the largest of all; the first one then stands
 * alone. */
static long top(const struct kernels *kernels, const float *logits, size_t V, size_t k, int64_t *ids)
{
    size_t columns = columns_for(V, k);
    float maxima[WIDE];
    if (kernels->column_maxima(logits, V, maxima, columns ? columns : LEAST) > INFINITY_BITS) {
        ids[0] = (int64_t)first_nan(logits, V);
        return 1;
    }
    if (!columns) return sort_ids(logits, NULL, V, ids, k) ? -1 : (long)k;
    int32_t *found = (int32_t *)malloc(V * sizeof *found);
    if (!found) return -1;
    size_t n = kernels->find_from(logits, V, kth_largest(maxima, columns, k), k, found);
    int failed = sort_ids(logits, found, n, ids, k);
    free(found);
    return failed ? -1 : (long)k;
}

#endif
