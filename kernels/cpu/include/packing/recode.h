/* Blocks of types without kernels brought to a format that has some (recode.py says which and why), 16 rows at a time on their
 * way into a group. A grid's rows are looked up as 8 bytes at once, which stay 8 bytes until two of them become nibbles.
 */
#ifndef OLLAMA_RECODE_H
#define OLLAMA_RECODE_H

#include "packing/pack.h"

enum recoding { IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, TQ1_0, TQ2_0, NVFP4, RECODINGS };

struct recoding_info { int block_size, block_nbytes; enum format target; int target_nbytes; };

static const struct recoding_info recoding_infos[RECODINGS] = {
    [IQ1_S] = {256, 50, GRID, 147},   [IQ1_M] = {256, 56, GRID, 147},  [IQ2_XXS] = {256, 66, GRID, 147},
    [IQ2_XS] = {256, 74, GRID, 147},  [IQ2_S] = {256, 82, GRID, 147},  [IQ3_XXS] = {256, 98, GRID, 147},
    [IQ3_S] = {256, 110, GRID, 147},  [TQ1_0] = {256, 54, Q2_K, 84},   [TQ2_0] = {256, 66, Q2_K, 84},
    [NVFP4] = {64, 36, F16, 128},
};

/* Which of tables.h has a type's numbers. They rise and have both signs, so that number last - i is the negative of number i. */
static const uint8_t table_of[] = {
    [IQ1_S] = 3, [IQ1_M] = 3, [IQ2_XXS] = 0, [IQ2_XS] = 0, [IQ2_S] = 0, [IQ3_XXS] = 1, [IQ3_S] = 2,
};

#define EVERY_BYTE 0x0101010101010101u

static inline uint32_t word_of(const uint8_t *bytes)
{
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static inline unsigned half_of(const uint8_t *bytes) { return bytes[0] | bytes[1] << 8; }

/* Row i of a grid of 8 or of 4 bytes a row: indices of numbers. */
static inline uint64_t eight_of(const uint8_t *grid, unsigned i)
{
    uint64_t row;
    memcpy(&row, grid + 8 * i, sizeof row);
    return row;
}

static inline uint64_t four_and_four_of(const uint8_t *grid, unsigned i, unsigned j)
{
    return word_of(grid + 4 * i) | (uint64_t)word_of(grid + 4 * j) << 32;
}

/* The indices of the negative numbers where signs has a bit. */
static inline uint64_t signed_as(uint64_t indices, unsigned signs, int last)
{
    uint64_t bits = signs * EVERY_BYTE & 0x8040201008040201u;           /* one bit in byte i */
    uint64_t ones = (bits | (bits + 0x7f * EVERY_BYTE)) >> 7 & EVERY_BYTE;
    return indices ^ ((indices ^ (last * EVERY_BYTE - indices)) & ones * 0xff);
}

/* 7 signs and an eighth that makes the number of negative ones even. */
static inline unsigned even_signs(unsigned seven) { return seven | (unsigned)__builtin_parity(seven) << 7; }

static inline int8_t odd(unsigned scale) { return (int8_t)(2 * scale + 1); }

/* 16 scales from nibbles, or each nibble twice from half as many. */
static inline void nibble_scales(const uint8_t *bytes, int times, int8_t *out)
{
    for (int n = 0; n < 16; n++) out[n] = odd(bytes[n / times / 2] >> n / times % 2 * 4 & 15);
}

static void iq2_xxs_block(const uint8_t *b, const uint8_t *grid, uint64_t *values, int8_t *scales)
{
    for (int j = 0; j < 8; j++) {
        uint32_t upper = word_of(b + 6 + 8 * j);
        scales[2 * j] = scales[2 * j + 1] = odd(upper >> 28);
        for (int l = 0; l < 4; l++)
            values[4 * j + l] = signed_as(eight_of(grid, b[2 + 8 * j + l]), even_signs(upper >> 7 * l & 127), 5);
    }
}

static void iq2_xs_block(const uint8_t *b, const uint8_t *grid, uint64_t *values, int8_t *scales)
{
    nibble_scales(b + 66, 1, scales);
    for (int i = 0; i < 32; i++) {
        unsigned word = half_of(b + 2 + 2 * i);
        values[i] = signed_as(eight_of(grid, word & 511), even_signs(word >> 9), 5);
    }
}

static void iq2_s_block(const uint8_t *b, const uint8_t *grid, uint64_t *values, int8_t *scales)
{
    nibble_scales(b + 74, 1, scales);
    for (int i = 0; i < 32; i++) {
        unsigned index = b[2 + i] | (b[66 + i / 4] >> i % 4 * 2 & 3) << 8;
        values[i] = signed_as(eight_of(grid, index), b[34 + i], 5);
    }
}

static void iq3_xxs_block(const uint8_t *b, const uint8_t *grid, uint64_t *values, int8_t *scales)
{
    for (int i = 0; i < 32; i++) {
        uint32_t upper = word_of(b + 66 + i / 4 * 4);
        scales[i / 2] = odd(upper >> 28);
        uint64_t indices = four_and_four_of(grid, b[2 + 2 * i], b[3 + 2 * i]);
        values[i] = signed_as(indices, even_signs(upper >> i % 4 * 7 & 127), 15);
    }
}

static void iq3_s_block(const uint8_t *b, const uint8_t *grid, uint64_t *values, int8_t *scales)
{
    nibble_scales(b + 106, 2, scales);
    for (int i = 0; i < 32; i++) {
        unsigned high = b[66 + i / 4] >> i % 4 * 2;
        uint64_t indices = four_and_four_of(grid, b[2 + 2 * i] | (high & 1) << 8, b[3 + 2 * i] | (high & 2) << 7);
        values[i] = signed_as(indices, b[74 + i], 15);
    }
}

/* The grid of IQ1 stands there twice: with the offset added, then with it taken away. */
enum { IQ1_ROWS = 2048 };

static void iq1_s_block(const uint8_t *b, const uint8_t *grid, uint64_t *values, int8_t *scales)
{
    for (int i = 0; i < 32; i++) {
        unsigned upper = half_of(b + 34 + i / 4 * 2), index = b[2 + i] | (upper >> i % 4 * 3 & 7) << 8;
        scales[i / 2] = odd(upper >> 12 & 7);
        values[i] = eight_of(grid, index + (upper >> 15) * IQ1_ROWS);
    }
}

static void iq1_m_block(const uint8_t *b, const uint8_t *grid, uint64_t *values, int8_t *scales)
{
    for (int n = 0; n < 16; n++) scales[n] = odd(half_of(b + 48 + n / 4 * 2) >> n % 4 * 3 & 7);
    for (int i = 0; i < 32; i++) {
        unsigned upper = b[32 + i / 2] >> i % 2 * 4 & 15;
        values[i] = eight_of(grid, (b[i] | (upper & 7) << 8) + (upper >> 3) * IQ1_ROWS);
    }
}

/* The 4 bits of IQ1_M's d that each word of scales has on top. */
static inline uint16_t iq1_m_d(const uint8_t *b)
{
    unsigned d = 0;
    for (int w = 0; w < 4; w++) d |= half_of(b + 48 + 2 * w) >> 12 << 4 * w;
    return (uint16_t)d;
}

static void grid_block(enum recoding kind, const uint8_t *b, const uint8_t *grid, struct file_grid *out)
{
    uint64_t values[32], nibbles[16];
    out->d = kind == IQ1_M ? iq1_m_d(b) : (uint16_t)half_of(b);
    out->table = table_of[kind];
    switch (kind) {
    case IQ1_S: iq1_s_block(b, grid, values, out->scales); break;
    case IQ1_M: iq1_m_block(b, grid, values, out->scales); break;
    case IQ2_XXS: iq2_xxs_block(b, grid, values, out->scales); break;
    case IQ2_XS: iq2_xs_block(b, grid, values, out->scales); break;
    case IQ2_S: iq2_s_block(b, grid, values, out->scales); break;
    case IQ3_XXS: iq3_xxs_block(b, grid, values, out->scales); break;
    default: iq3_s_block(b, grid, values, out->scales); break;
    }
    for (int i = 0; i < 16; i++) nibbles[i] = values[i / 4 * 8 + i % 4] | values[i / 4 * 8 + 4 + i % 4] << 4;
    memcpy(out->q, nibbles, sizeof nibbles);
}

/* Digits 0, 1, 2 of `count` bytes, the first digits of all bytes first; a byte is a fraction of 256 in base 3. */
static inline void ternary_digits(const uint8_t *bytes, int count, int digits, uint8_t *out)
{
    for (int n = 0, power = 1; n < digits; n++, power *= 3)
        for (int i = 0; i < count; i++) out[n * count + i] = (uint8_t)((bytes[i] * power & 255) * 3 >> 8);
}

static void tq1_0_digits(const uint8_t *b, uint8_t *q)
{
    uint8_t digits[256];
    ternary_digits(b, 32, 5, digits);
    ternary_digits(b + 32, 16, 5, digits + 160);
    ternary_digits(b + 48, 4, 4, digits + 240);
    for (int i = 0; i < 64; i++) {
        const uint8_t *first = digits + i / 32 * 128 + i % 32;
        q[i] = (uint8_t)(first[0] | first[32] << 2 | first[64] << 4 | first[96] << 6);
    }
}

/* d (digit - 1): all scales and minimums are 1. The digits of TQ2_0 stand where Q2_K has them. */
static void ternary_block(enum recoding kind, const uint8_t *b, struct file_q2_k *out)
{
    uint8_t q[64];
    memset(out->scales, 0x11, sizeof out->scales);
    if (kind == TQ1_0) tq1_0_digits(b, q);
    else memcpy(q, b, sizeof q);
    memcpy(out->q, q, sizeof q);
    out->d = out->m = (uint16_t)half_of(b + recoding_infos[kind].block_nbytes - 2);
}

/* `table` has the float16 of every scale and nibble, [256][16]. */
static void nvfp4_block(const uint8_t *b, const uint8_t *table, uint8_t *out)
{
    for (int k = 0; k < 64; k++) {
        int sub = k / 16, nibble = b[4 + 8 * sub + k % 8] >> k / 8 % 2 * 4 & 15;
        memcpy(out + 2 * k, table + 2 * (16 * b[sub] + nibble), 2);
    }
}

static void recode_block(enum recoding kind, const uint8_t *block, const uint8_t *table, uint8_t *out)
{
    if (kind == NVFP4) nvfp4_block(block, table, out);
    else if (kind == TQ1_0 || kind == TQ2_0) ternary_block(kind, block, (struct file_q2_k *)out);
    else grid_block(kind, block, table, (struct file_grid *)out);
}

enum { RECODED_AT_ONCE = 2 };   /* blocks of a row: what 16 rows of them take stays in L1 */

/* As pack_group does, a weight [N, K] whose blocks are recoded on the way. */
static void recode_group(enum recoding kind, const uint8_t *table, const uint8_t *file, size_t N, size_t K, size_t g, void *packed)
{
    struct recoding_info info = recoding_infos[kind];
    size_t blocks = K / info.block_size, first = g * 16, step = blocks * info.block_nbytes;
    uint8_t *out = (uint8_t *)packed + first * blocks * info.target_nbytes, recoded[16][RECODED_AT_ONCE * 147];
    int count = N - first < 16 ? (int)(N - first) : 16;
    for (size_t b = 0, n; b < blocks; b += n, out += 16 * n * info.target_nbytes) {
        n = blocks - b < RECODED_AT_ONCE ? blocks - b : RECODED_AT_ONCE;
        const uint8_t *from = file + first * step + b * info.block_nbytes;
        for (int r = 0; r < count; r++)
            for (size_t i = 0; i < n; i++)
                recode_block(kind, from + r * step + i * info.block_nbytes, table, recoded[r] + i * info.target_nbytes);
        struct source_rows in = source_of(recoded[0], sizeof recoded[0], count);
        pack_rows(info.target, &in, n * info.block_size, out);
    }
}

#endif
