/* One row of a packed weight as float32: the embedding of a token, from the same bytes that the output head multiplies with.
 *
 * The float operations are those of ggml's dequantize_row_*, in that order.
 */
#ifndef OLLAMA_UNPACK_H
#define OLLAMA_UNPACK_H

#include "formats/formats.h"
#include "formats/half.h"
#include "formats/tables.h"

/* Byte of k = 4 i + t of row r in a vector. */
static inline int byte_of(const uint32_t *vector, int r, int t)
{
    return ((const uint8_t *)vector)[4 * r + t];
}

/* Where scale and minimum of sub-block j, row r, stand among those of Q2_K, Q4_K and Q5_K. */
static inline int scale_at(int j, int r) { return 16 * (j % 4) + r; }
static inline int minimum_at(int j, int r) { return 32 * (j % 4 / 2) + 2 * r + j % 2; }

static inline int nibble_32(const uint32_t (*q)[16], int k, int r)
{
    return byte_of(q[k % 16 / 4], r, k % 4) >> k / 16 * 4 & 15;
}

static void unpack_block_32(enum format format, const void *block, int r, float *out)
{
    for (int k = 0; k < 32; k++) {
        if (format == Q4_0) {
            const struct packed_q4_0 *b = block;
            out[k] = float_of_half(b->d[r]) * (float)(nibble_32(b->q, k, r) - 8);
        } else if (format == Q4_1) {
            const struct packed_q4_1 *b = block;
            out[k] = float_of_half(b->d[r]) * (float)nibble_32(b->q, k, r) + float_of_half(b->m[r]);
        } else if (format == Q5_0) {
            const struct packed_q5_0 *b = block;
            int fifth = byte_of(b->high, r, k % 4) >> k / 4 & 1;
            out[k] = float_of_half(b->d[r]) * (float)((nibble_32(b->q, k, r) | fifth << 4) - 16);
        } else if (format == Q5_1) {
            const struct packed_q5_1 *b = block;
            int fifth = byte_of(b->high, r, k % 4) >> k / 4 & 1;
            out[k] = float_of_half(b->d[r]) * (float)(nibble_32(b->q, k, r) | fifth << 4) + float_of_half(b->m[r]);
        } else if (format == IQ4_NL) {
            const struct packed_q4_0 *b = block;
            out[k] = float_of_half(b->d[r]) * (float)(iq4_table[nibble_32(b->q, k, r)] - IQ4_OFFSET);
        } else if (format == MXFP4) {
            const struct packed_mxfp4 *b = block;
            out[k] = float_of_e8m0(b->e[r]) * (float)(mxfp4_table[nibble_32(b->q, k, r)] - MXFP4_OFFSET);
        } else {
            const struct packed_q8_0 *b = block;
            out[k] = float_of_half(b->d[r]) * (float)(byte_of(b->q[k / 4], r, k % 4) - 128);
        }
    }
}

/* The 6-bit scale and minimum of sub-block j of Q4_K and Q5_K. */
static inline void unpack_scale(const uint8_t (*scales)[64], int j, int r, int *scale, int *minimum)
{
    int high = j < 4 ? 0 : 4;
    *scale = (scales[j / 4][scale_at(j, r)] & 15) | (scales[2][scale_at(j, r)] >> high & 3) << 4;
    *minimum = scales[j / 4][minimum_at(j, r)] >> 4 | (scales[2][minimum_at(j, r)] >> (2 + high) & 3) << 4;
}

static void unpack_block_256(enum format format, const void *block, int r, float *out)
{
    const struct packed_q4_k *q4 = block;
    const struct packed_q5_k *q5 = block;
    const struct packed_q6_k *q6 = block;
    for (int k = 0; k < 256; k++) {
        if (format == Q6_K) {
            int c = k / 64, u = k / 16 % 4, i = k / 4 % 4;
            int low = byte_of(q6->chunk[c].q[i].low[u % 2], r, k % 4) >> u / 2 * 4 & 15;
            int high = byte_of(q6->chunk[c].q[i].high, r, k % 4) >> u * 2 & 3;
            out[k] = float_of_half(q6->d[r]) * (float)q6->chunk[c].scales[u][r] * (float)((low | high << 4) - 32);
            continue;
        }
        int j = k / 32, i = k % 32 / 4, scale, minimum, q;
        unpack_scale(format == Q4_K ? q4->scales : q5->scales, j, r, &scale, &minimum);
        if (format == Q4_K) {
            q = byte_of(q4->q[j / 2 * 8 + i], r, k % 4) >> j % 2 * 4 & 15;
        } else {
            q = byte_of(q5->pair[j / 2].q[i], r, k % 4) >> j % 2 * 4 & 15;
            q |= (byte_of(q5->pair[j / 2].high[i / 4], r, k % 4) >> (2 * (i % 4) + j % 2) & 1) << 4;
        }
        float d = float_of_half(format == Q4_K ? q4->d[r] : q5->d[r]) * (float)scale;
        out[k] = d * (float)q - float_of_half(format == Q4_K ? q4->m[r] : q5->m[r]) * (float)minimum;
    }
}

static void unpack_q2_k(const struct packed_q2_k *b, int r, float *out)
{
    for (int k = 0; k < 256; k++) {
        int j = k / 16, u = k / 32 % 4, q = byte_of(b->q[k / 128 * 8 + k % 32 / 4], r, k % 4) >> 2 * u & 3;
        float scale = float_of_half(b->d[r]) * (float)(b->scales[j / 4][scale_at(j, r)] & 15);
        out[k] = scale * (float)q - float_of_half(b->m[r]) * (float)(b->scales[j / 4][minimum_at(j, r)] >> 4);
    }
}

static void unpack_q3_k(const struct packed_q3_k *b, int r, float *out)
{
    for (int k = 0; k < 256; k++) {
        int j = k / 16, i = k / 4 % 4, t = k % 4, six = 0;
        for (int v = 0; v < 3; v++) six |= byte_of(b->q[k / 32][v], r, t) >> 6 << 2 * v;
        int q = (i < 3 ? byte_of(b->q[k / 32][i], r, t) : six) >> 3 * (j % 2) & 7, at = 16 * (j % 4) + r;
        int scale = (b->scales[j % 8 / 4][at] >> 4 * (j / 8) & 15) | (b->scales[2][at] >> 2 * (j / 4) & 3) << 4;
        out[k] = float_of_half(b->d[r]) * (float)(scale - 32) * (float)(q - 4);
    }
}

static void unpack_iq4_xs(const struct packed_iq4_xs *b, int r, float *out)
{
    for (int k = 0; k < 256; k++) {
        int j = k / 32, scale = (b->low[r] >> 4 * j & 15) | (b->high[r] >> 2 * j & 3) << 4;
        int value = iq4_table[nibble_32(b->q + 4 * j, k % 32, r)] - IQ4_OFFSET;
        out[k] = float_of_half(b->d[r]) * (float)(scale - 32) * (float)value;
    }
}

static void unpack_grid(const struct packed_grid *b, int r, float *out)
{
    const struct grid_table *grid = &grid_tables[b->table[0] % GRID_TABLES];
    for (int k = 0; k < 256; k++) {
        float scale = float_of_half(b->d[r]) * grid->unit * (float)b->scales[k / 16][r];
        int q = byte_of(b->q[k / 64 * 8 + k % 32 / 4], r, k % 4) >> k / 32 % 2 * 4 & 15;
        out[k] = scale * (float)(grid->values[q] - GRID_OFFSET);
    }
}

/* Row n of a packed weight [N, K] -> out [K]. */
static void unpack_row(enum format format, const void *packed, size_t K, size_t n, float *out)
{
    const uint8_t *group = (const uint8_t *)packed + n / 16 * 16 * row_nbytes(format, K);
    int r = (int)(n % 16), size = format_infos[format].block_size, nbytes = 16 * format_infos[format].block_nbytes;
    for (size_t b = 0; b < K / size; b++, group += nbytes, out += size) {
        if (format == F32)
            memcpy(out, group + 4 * r, 4);
        else if (format == F16)
            *out = float_of_half(((const uint16_t *)group)[r]);
        else if (format == BF16)
            *out = float_of_bfloat(((const uint16_t *)group)[r]);
        else if (size == 32)
            unpack_block_32(format, group, r, out);
        else if (format == Q2_K)
            unpack_q2_k((const void *)group, r, out);
        else if (format == Q3_K)
            unpack_q3_k((const void *)group, r, out);
        else if (format == IQ4_XS)
            unpack_iq4_xs((const void *)group, r, out);
        else if (format == GRID)
            unpack_grid((const void *)group, r, out);
        else
            unpack_block_256(format, group, r, out);
    }
}

#endif
