/* 16 rows of a weight in a file, read side by side: what stands in the rows behind each other comes to stand in lanes. */
#ifndef OLLAMA_PACK_ROWS_H
#define OLLAMA_PACK_ROWS_H

#include <string.h>

#include "formats/formats.h"

static const uint8_t zero_block[256];       /* stands in for a row past N; as long as the longest block of a file */

/* Where each row's next block is; a row past N stays at zero_block. */
struct source_rows { const uint8_t *block[16]; int count; };

static inline void next_block(struct source_rows *rows, size_t nbytes)
{
    for (int r = 0; r < rows->count; r++) rows->block[r] += nbytes;
}

/* `count` rows, `step` bytes apart, as 16. */
static inline struct source_rows source_of(const uint8_t *first, size_t step, int count)
{
    struct source_rows rows = {.count = count};
    for (int r = 0; r < 16; r++) rows.block[r] = r < count ? first + r * step : zero_block;
    return rows;
}

typedef uint32_t four_words __attribute__((vector_size(16)));

static inline four_words four_words_at(const uint8_t *bytes)
{
    four_words words;
    memcpy(&words, bytes, sizeof words);
    return words;
}

/* Four words of rows r..r + 3 -> out[word][row]. */
static inline void transpose_4x4(const struct source_rows *rows, size_t offset, int r, uint32_t (*out)[16])
{
    four_words a = four_words_at(rows->block[r] + offset), b = four_words_at(rows->block[r + 1] + offset);
    four_words c = four_words_at(rows->block[r + 2] + offset), d = four_words_at(rows->block[r + 3] + offset);
    four_words ab_01 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_23 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    four_words cd_01 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_23 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    four_words transposed[4] = {
        __builtin_shufflevector(ab_01, cd_01, 0, 1, 4, 5), __builtin_shufflevector(ab_01, cd_01, 2, 3, 6, 7),
        __builtin_shufflevector(ab_23, cd_23, 0, 1, 4, 5), __builtin_shufflevector(ab_23, cd_23, 2, 3, 6, 7),
    };
    for (int i = 0; i < 4; i++) memcpy(&out[i][r], &transposed[i], sizeof transposed[i]);
}

/* Words from byte `offset` of every row's block on -> out[word][row]. */
static inline void gather_words(const struct source_rows *rows, size_t offset, int count, uint32_t (*out)[16])
{
    int fours = count / 4 * 4;
    for (int i = 0; i < fours; i += 4)
        for (int r = 0; r < 16; r += 4) transpose_4x4(rows, offset + 4 * i, r, out + i);
    for (int i = fours; i < count; i++)
        for (int r = 0; r < 16; r++) memcpy(&out[i][r], rows->block[r] + offset + 4 * i, 4);
}

/* Bytes from `offset` on, 4 for each of `words` -> out[byte][row]. */
static inline void gather_bytes(const struct source_rows *rows, size_t offset, int words, uint8_t (*out)[16])
{
    uint32_t lanes[4][16];
    gather_words(rows, offset, words, lanes);
    for (int i = 0; i < 4 * words; i++)
        for (int r = 0; r < 16; r++) out[i][r] = (uint8_t)(lanes[i / 4][r] >> i % 4 * 8);
}

/* A 16-bit number, which stands where a block's scale does -> out[row]. */
static inline void gather_halves(const struct source_rows *rows, size_t offset, uint16_t *out)
{
    for (int r = 0; r < 16; r++) memcpy(&out[r], rows->block[r] + offset, 2);
}

typedef uint8_t sixteen_bytes __attribute__((vector_size(16)));

/* Scales of two sub-blocks, and their minimums row by row, which share no bit -> 32 bytes. */
static inline void join_scales(const uint8_t (*scales)[16], const uint8_t (*minimums)[16], uint8_t *out)
{
    sixteen_bytes scale[2], minimum[2];
    memcpy(scale, scales, sizeof scale);
    memcpy(minimum, minimums, sizeof minimum);
    scale[0] |= __builtin_shufflevector(minimum[0], minimum[1], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    scale[1] |= __builtin_shufflevector(minimum[0], minimum[1], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    memcpy(out, scale, sizeof scale);
}

/* Blocks of a row one after the other, with `in` at block b; packed as out[b]. */
#define EACH_BLOCK(size, type) \
    for (size_t b = 0; b < K / (size); b++, next_block(in, sizeof(struct type)))
#define HALVES(type, member, to) gather_halves(in, offsetof(struct type, member), to)
#define WORDS(type, member, count, to) gather_words(in, offsetof(struct type, member), count, to)
#define BYTES(type, member, words, to) gather_bytes(in, offsetof(struct type, member), words, to)

#endif
