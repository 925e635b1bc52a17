/* Weights repacked from the order of a file into 16-row groups (formats.h): prepacked weights.
 *
 * The words (4 bytes) of 16 rows are transposed (packing/rows.h), so that a loop over the rows is a loop over lanes, which the
 * compiler turns into vectors; what is left of a format are masks and shifts of whole vectors. One Zen 4 core packs 2.9 (Q3_K) to
 * 7.7 GB/s (F32) so, and 0.7 (Q6_K) to 6.7 when it moves words or values one by one; memcpy moves 11.
 */
#ifndef OLLAMA_PACK_H
#define OLLAMA_PACK_H

#include "formats/formats.h"
#include "packing/low.h"
#include "packing/rows.h"

static void pack_32(struct source_rows *in, size_t K, uint32_t (*out)[16])
{
    size_t k = 0;
    for (; k + 4 <= K; k += 4, next_block(in, 16)) gather_words(in, 0, 4, out + k);
    for (; k < K; k++, next_block(in, 4)) gather_words(in, 0, 1, out + k);
}

static void pack_16(struct source_rows *in, size_t K, uint16_t (*out)[16])
{
    size_t k = 0;
    for (; k + 8 <= K; k += 8, next_block(in, 16)) {
        uint32_t pairs[4][16];
        gather_words(in, 0, 4, pairs);
        for (int i = 0; i < 8; i++)
            for (int r = 0; r < 16; r++) out[k + i][r] = (uint16_t)(pairs[i / 2][r] >> 16 * (i % 2));
    }
    for (; k < K; k++, next_block(in, 2)) gather_halves(in, 0, out[k]);
}

static void pack_q4_0(struct source_rows *in, size_t K, struct packed_q4_0 *out)
{
    EACH_BLOCK(32, file_q4_0) {
        HALVES(file_q4_0, d, out[b].d);
        WORDS(file_q4_0, q, 4, out[b].q);
    }
}

static void pack_q4_1(struct source_rows *in, size_t K, struct packed_q4_1 *out)
{
    EACH_BLOCK(32, file_q4_1) {
        HALVES(file_q4_1, d, out[b].d);
        HALVES(file_q4_1, m, out[b].m);
        WORDS(file_q4_1, q, 4, out[b].q);
    }
}

/* 32 fifth bits, bit k of the file -> bit i of byte t with k = 4 i + t. */
static inline uint32_t fifth_bits(uint32_t high)
{
    uint32_t out = 0;
    for (int t = 0; t < 4; t++) {
        uint32_t every_fourth = high >> t & 0x11111111u;        /* bit 4 i is fifth bit of k = 4 i + t */
        every_fourth = (every_fourth | every_fourth >> 3) & 0x03030303u;
        every_fourth = (every_fourth | every_fourth >> 6) & 0x000f000fu;
        every_fourth = (every_fourth | every_fourth >> 12) & 0x000000ffu;
        out |= every_fourth << 8 * t;
    }
    return out;
}

static void pack_q5_0(struct source_rows *in, size_t K, struct packed_q5_0 *out)
{
    EACH_BLOCK(32, file_q5_0) {
        uint32_t high[1][16];
        HALVES(file_q5_0, d, out[b].d);
        WORDS(file_q5_0, high, 1, high);
        for (int r = 0; r < 16; r++) out[b].high[r] = fifth_bits(high[0][r]);
        WORDS(file_q5_0, q, 4, out[b].q);
    }
}

static void pack_q5_1(struct source_rows *in, size_t K, struct packed_q5_1 *out)
{
    EACH_BLOCK(32, file_q5_1) {
        uint32_t high[1][16];
        HALVES(file_q5_1, d, out[b].d);
        HALVES(file_q5_1, m, out[b].m);
        WORDS(file_q5_1, high, 1, high);
        for (int r = 0; r < 16; r++) out[b].high[r] = fifth_bits(high[0][r]);
        WORDS(file_q5_1, q, 4, out[b].q);
    }
}

static void pack_q8_0(struct source_rows *in, size_t K, struct packed_q8_0 *out)
{
    EACH_BLOCK(32, file_q8_0) {
        HALVES(file_q8_0, d, out[b].d);
        WORDS(file_q8_0, q, 8, out[b].q);
        for (int i = 0; i < 8; i++)
            for (int r = 0; r < 16; r++) out[b].q[i][r] ^= 0x80808080u;
    }
}

/* The 6-bit scales and minimums of Q4_K and Q5_K: in a file sub-block j < 4 has all bits of its own in bytes j and 4 + j, and
 * sub-block 4 + j low bits in byte 8 + j and high bits atop those of j. */
static inline void pack_scales(const struct source_rows *in, size_t offset, uint8_t (*out)[64])
{
    uint8_t file[12][16], scales[3][4][16], minimums[3][4][16];
    gather_bytes(in, offset, 3, file);
    for (int j = 0; j < 4; j++)
        for (int r = 0; r < 16; r++) {
            uint8_t scale = file[j][r], minimum = file[4 + j][r], both = file[8 + j][r];
            scales[0][j][r] = scale & 15;
            scales[1][j][r] = both & 15;
            scales[2][j][r] = (scale >> 4 & 3) | (scale >> 6 << 4);
            minimums[0][j][r] = (uint8_t)(minimum << 4);
            minimums[1][j][r] = both & 0xf0;
            minimums[2][j][r] = (minimum >> 4 & 3) << 2 | minimum >> 6 << 6;
        }
    for (int v = 0; v < 3; v++)
        for (int j = 0; j < 4; j += 2) join_scales(scales[v] + j, minimums[v] + j, out[v] + 16 * j);
}

static void pack_q4_k(struct source_rows *in, size_t K, struct packed_q4_k *out)
{
    EACH_BLOCK(256, file_q4_k) {
        HALVES(file_q4_k, d, out[b].d);
        HALVES(file_q4_k, m, out[b].m);
        pack_scales(in, offsetof(struct file_q4_k, scales), out[b].scales);
        WORDS(file_q4_k, q, 32, out[b].q);
    }
}

static void pack_q5_k(struct source_rows *in, size_t K, struct packed_q5_k *out)
{
    EACH_BLOCK(256, file_q5_k) {
        uint32_t high[8][16];
        HALVES(file_q5_k, d, out[b].d);
        HALVES(file_q5_k, m, out[b].m);
        pack_scales(in, offsetof(struct file_q5_k, scales), out[b].scales);
        WORDS(file_q5_k, high, 8, high);
        for (int p = 0; p < 4; p++) {
            for (int i = 0; i < 2; i++)         /* bits 2p and 2p + 1 of four words -> all bits of one */
                for (int r = 0; r < 16; r++)
                    out[b].pair[p].high[i][r] =
                        (high[4 * i][r] >> 2 * p & 0x03030303u) | (high[4 * i + 1][r] >> 2 * p & 0x03030303u) << 2 |
                        (high[4 * i + 2][r] >> 2 * p & 0x03030303u) << 4 | (high[4 * i + 3][r] >> 2 * p & 0x03030303u) << 6;
            gather_words(in, offsetof(struct file_q5_k, q) + 32 * p, 8, out[b].pair[p].q);
        }
    }
}

/* Chunk c of a block. A file's half of 128 k has quarters of 32: quarters 0 and 1 are low nibbles, 2 and 3 high ones. */
static inline void pack_q6_k_chunk(const uint32_t (*low)[16], const uint32_t (*high)[16], int c, struct packed_q6_k *out)
{
    int shift = c % 2 * 4;
    low += c / 2 * 16;
    high += c / 2 * 8;
    for (int i = 0; i < 4; i++) {
        for (int w = 0; w < 2; w++)
            for (int r = 0; r < 16; r++)
                out->chunk[c].q[i].low[w][r] = (low[4 * w + i][r] >> shift & 0x0f0f0f0fu) |
                                               (low[8 + 4 * w + i][r] >> shift & 0x0f0f0f0fu) << 4;
        for (int r = 0; r < 16; r++) {
            uint32_t first = high[i][r] >> shift, second = high[4 + i][r] >> shift;
            out->chunk[c].q[i].high[r] = (first & 0x03030303u) | (second & 0x03030303u) << 2 |
                                         (first & 0x0c0c0c0cu) << 2 | (second & 0x0c0c0c0cu) << 4;
        }
    }
}

static void pack_q6_k(struct source_rows *in, size_t K, struct packed_q6_k *out)
{
    EACH_BLOCK(256, file_q6_k) {
        uint32_t low[32][16], high[16][16];
        uint8_t scales[16][16];
        HALVES(file_q6_k, d, out[b].d);
        WORDS(file_q6_k, low, 32, low);
        WORDS(file_q6_k, high, 16, high);
        BYTES(file_q6_k, scales, 4, scales);
        for (int c = 0; c < 4; c++) {
            memcpy(out[b].chunk[c].scales, scales + 4 * c, sizeof out[b].chunk[c].scales);
            pack_q6_k_chunk(low, high, c, &out[b]);
        }
    }
}

/* Pack K values of 16 rows, whole blocks. */
static void pack_rows(enum format format, struct source_rows *in, size_t K, void *out)
{
    switch (format) {
    case F32: pack_32(in, K, out); break;
    case F16: case BF16: pack_16(in, K, out); break;
    case Q4_0: case IQ4_NL: pack_q4_0(in, K, out); break;
    case Q4_1: pack_q4_1(in, K, out); break;
    case Q5_0: pack_q5_0(in, K, out); break;
    case Q5_1: pack_q5_1(in, K, out); break;
    case Q8_0: pack_q8_0(in, K, out); break;
    case MXFP4: pack_mxfp4(in, K, out); break;
    case Q2_K: pack_q2_k(in, K, out); break;
    case Q3_K: pack_q3_k(in, K, out); break;
    case Q4_K: pack_q4_k(in, K, out); break;
    case Q5_K: pack_q5_k(in, K, out); break;
    case Q6_K: pack_q6_k(in, K, out); break;
    case IQ4_XS: pack_iq4_xs(in, K, out); break;
    case GRID: pack_grid(in, K, out); break;
    case FORMATS: break;
    }
}

/* Pack group g of a weight [N, K]. */
static inline void pack_group(enum format format, const uint8_t *file, size_t N, size_t K, size_t g, void *packed)
{
    size_t step = row_nbytes(format, K), first = g * 16;
    struct source_rows in = source_of(file + first * step, step, N - first < 16 ? (int)(N - first) : 16);
    pack_rows(format, &in, K, (uint8_t *)packed + first * step);
}

#endif
