/* Weights from the order of a file into 16-row groups (formats.h), and single rows back to float32.
 *
 * Packing moves 4 bytes at a time; Q6_K and the 5-bit formats also move bits, 4 values per 32-bit operation.
 */
#ifndef OLLAMA_PACK_H
#define OLLAMA_PACK_H

#include "formats.h"
#include "half.h"

static const uint8_t zero_block[256];       /* stands in for a row past N; as long as the longest block of a file */

/* The r-th row of a group in a file, or zeros past the last one. */
struct source_rows { const uint8_t *row[GROUP_ROWS]; size_t step; int count; };

#define FILE_BLOCK(type, r, b) \
    ((const struct type *)((r) < rows->count ? rows->row[r] + (b) * sizeof(struct type) : zero_block))

static void pack_32(const struct source_rows *rows, size_t K, uint32_t *out)
{
    for (size_t k = 0; k < K; k++)
        for (int r = 0; r < GROUP_ROWS; r++) {
            out[k * 16 + r] = 0;
            if (r < rows->count) memcpy(&out[k * 16 + r], rows->row[r] + 4 * k, 4);
        }
}

static void pack_16(const struct source_rows *rows, size_t K, uint16_t *out)
{
    for (size_t k = 0; k < K; k++)
        for (int r = 0; r < GROUP_ROWS; r++) {
            out[k * 16 + r] = 0;
            if (r < rows->count) memcpy(&out[k * 16 + r], rows->row[r] + 2 * k, 2);
        }
}

static void pack_q4_0(const struct source_rows *rows, size_t K, struct packed_q4_0 *out)
{
    for (size_t b = 0; b < K / 32; b++)
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_q4_0 *in = FILE_BLOCK(file_q4_0, r, b);
            out[b].d[r] = in->d;
            for (int i = 0; i < 4; i++) out[b].q[i][r] = in->q[i];
        }
}

static void pack_q4_1(const struct source_rows *rows, size_t K, struct packed_q4_1 *out)
{
    for (size_t b = 0; b < K / 32; b++)
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_q4_1 *in = FILE_BLOCK(file_q4_1, r, b);
            out[b].d[r] = in->d;
            out[b].m[r] = in->m;
            for (int i = 0; i < 4; i++) out[b].q[i][r] = in->q[i];
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

static void pack_q5_0(const struct source_rows *rows, size_t K, struct packed_q5_0 *out)
{
    for (size_t b = 0; b < K / 32; b++)
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_q5_0 *in = FILE_BLOCK(file_q5_0, r, b);
            out[b].d[r] = in->d;
            out[b].high[r] = fifth_bits(in->high);
            for (int i = 0; i < 4; i++) out[b].q[i][r] = in->q[i];
        }
}

static void pack_q5_1(const struct source_rows *rows, size_t K, struct packed_q5_1 *out)
{
    for (size_t b = 0; b < K / 32; b++)
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_q5_1 *in = FILE_BLOCK(file_q5_1, r, b);
            out[b].d[r] = in->d;
            out[b].m[r] = in->m;
            out[b].high[r] = fifth_bits(in->high);
            for (int i = 0; i < 4; i++) out[b].q[i][r] = in->q[i];
        }
}

static void pack_q8_0(const struct source_rows *rows, size_t K, struct packed_q8_0 *out)
{
    for (size_t b = 0; b < K / 32; b++)
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_q8_0 *in = FILE_BLOCK(file_q8_0, r, b);
            out[b].d[r] = in->d;
            for (int i = 0; i < 8; i++) out[b].q[i][r] = in->q[i] ^ 0x80808080u;
        }
}

/* The j-th scale and minimum of a Q4_K or Q5_K block, 6 bits each, from its 12 bytes. */
static inline void file_scale(const uint8_t *bytes, int j, int *scale, int *minimum)
{
    if (j < 4) {
        *scale = bytes[j] & 63;
        *minimum = bytes[j + 4] & 63;
    } else {
        *scale = (bytes[j + 4] & 15) | bytes[j - 4] >> 6 << 4;
        *minimum = bytes[j + 4] >> 4 | bytes[j] >> 6 << 4;
    }
}

/* Where packed_q4_k keeps scale and minimum of sub-block j, row r. */
static inline int scale_at(int j, int r) { return 16 * (j % 4) + r; }
static inline int minimum_at(int j, int r) { return 32 * (j % 4 / 2) + 2 * r + j % 2; }

static void pack_scales(const uint8_t *bytes, int r, uint8_t (*out)[64])
{
    for (int j = 0; j < 8; j++) {
        int scale, minimum, high = j < 4 ? 0 : 4;
        file_scale(bytes, j, &scale, &minimum);
        out[j / 4][scale_at(j, r)] |= (uint8_t)(scale & 15);
        out[j / 4][minimum_at(j, r)] |= (uint8_t)((minimum & 15) << 4);
        out[2][scale_at(j, r)] |= (uint8_t)(scale >> 4 << high);
        out[2][minimum_at(j, r)] |= (uint8_t)(minimum >> 4 << (2 + high));
    }
}

static inline void unpack_scale(const uint8_t (*scales)[64], int j, int r, int *scale, int *minimum)
{
    int high = j < 4 ? 0 : 4;
    *scale = (scales[j / 4][scale_at(j, r)] & 15) | (scales[2][scale_at(j, r)] >> high & 3) << 4;
    *minimum = scales[j / 4][minimum_at(j, r)] >> 4 | (scales[2][minimum_at(j, r)] >> (2 + high) & 3) << 4;
}

static void pack_q4_k(const struct source_rows *rows, size_t K, struct packed_q4_k *out)
{
    for (size_t b = 0; b < K / 256; b++) {
        memset(out[b].scales, 0, sizeof out[b].scales);
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_q4_k *in = FILE_BLOCK(file_q4_k, r, b);
            out[b].d[r] = in->d;
            out[b].m[r] = in->m;
            pack_scales(in->scales, r, out[b].scales);
            for (int i = 0; i < 32; i++) out[b].q[i][r] = in->q[i];
        }
    }
}

/* Bits 2p and 2p + 1 of 4 words -> bits 2i and 2i + 1 of one, in every byte. */
static inline uint32_t fifth_bits_of_pair(const uint32_t *high, int p)
{
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) out |= (high[i] >> 2 * p & 0x03030303u) << 2 * i;
    return out;
}

static void pack_q5_k(const struct source_rows *rows, size_t K, struct packed_q5_k *out)
{
    for (size_t b = 0; b < K / 256; b++) {
        memset(out[b].scales, 0, sizeof out[b].scales);
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_q5_k *in = FILE_BLOCK(file_q5_k, r, b);
            out[b].d[r] = in->d;
            out[b].m[r] = in->m;
            pack_scales(in->scales, r, out[b].scales);
            for (int p = 0; p < 4; p++) {
                for (int h = 0; h < 2; h++) out[b].pair[p].high[h][r] = fifth_bits_of_pair(in->high + 4 * h, p);
                for (int i = 0; i < 8; i++) out[b].pair[p].q[i][r] = in->q[8 * p + i];
            }
        }
    }
}

static void pack_q6_k(const struct source_rows *rows, size_t K, struct packed_q6_k *out)
{
    for (size_t b = 0; b < K / 256; b++) {
        memset(out[b].chunk, 0, sizeof out[b].chunk);
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_q6_k *in = FILE_BLOCK(file_q6_k, r, b);
            out[b].d[r] = in->d;
            for (int j = 0; j < 16; j++) out[b].chunk[j / 4].scales[j % 4][r] = in->scales[j];
            for (int n = 0; n < 64; n++) {      /* k = 4 n; a file's half of 128 has 4 quarters of 32 */
                int half = n / 32, quarter = n / 8 % 4, l = n % 8, c = n / 16, u = n / 4 % 4, i = n % 4;
                uint32_t low = in->low[half * 16 + quarter % 2 * 8 + l] >> quarter / 2 * 4 & 0x0f0f0f0fu;
                uint32_t high = in->high[half * 8 + l] >> quarter * 2 & 0x03030303u;
                out[b].chunk[c].q[i].low[u % 2][r] |= low << u / 2 * 4;
                out[b].chunk[c].q[i].high[r] |= high << u * 2;
            }
        }
    }
}

#include "pack_low.h"

/* Pack group g of a weight [N, K]. */
static void pack_group(enum format format, const uint8_t *file, size_t N, size_t K, size_t g, void *packed)
{
    size_t step = row_nbytes(format, K);
    struct source_rows rows = {.step = step, .count = N - g * 16 < 16 ? (int)(N - g * 16) : 16};
    void *out = (uint8_t *)packed + g * 16 * step;
    for (int r = 0; r < rows.count; r++) rows.row[r] = file + (g * 16 + r) * step;
    switch (format) {
    case F32: pack_32(&rows, K, out); break;
    case F16: case BF16: pack_16(&rows, K, out); break;
    case Q4_0: case IQ4_NL: pack_q4_0(&rows, K, out); break;
    case Q4_1: pack_q4_1(&rows, K, out); break;
    case Q5_0: pack_q5_0(&rows, K, out); break;
    case Q5_1: pack_q5_1(&rows, K, out); break;
    case Q8_0: pack_q8_0(&rows, K, out); break;
    case MXFP4: pack_mxfp4(&rows, K, out); break;
    case Q2_K: pack_q2_k(&rows, K, out); break;
    case Q3_K: pack_q3_k(&rows, K, out); break;
    case Q4_K: pack_q4_k(&rows, K, out); break;
    case Q5_K: pack_q5_k(&rows, K, out); break;
    case Q6_K: pack_q6_k(&rows, K, out); break;
    case IQ4_XS: pack_iq4_xs(&rows, K, out); break;
    case GRID: pack_grid(&rows, K, out); break;
    case FORMATS: break;
    }
}

#endif
