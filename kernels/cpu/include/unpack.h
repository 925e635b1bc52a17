/* One row of a packed weight as float32: the embedding of a token, from the same bytes that the output head multiplies with.
 *
 * The float operations are those of ggml's dequantize_row_*, in that order.
 */
#ifndef OLLAMA_UNPACK_H
#define OLLAMA_UNPACK_H

#include "pack.h"

/* Byte of k = 4 i + t of row r in a vector. */
static inline int byte_of(const uint32_t *vector, int r, int t)
{
    return ((const uint8_t *)vector)[4 * r + t];
}

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
        } else {
            const struct packed_q8_0 *b = block;
            out[k] = float_of_half(b->d[r]) * (float)(byte_of(b->q[k / 4], r, k % 4) - 128);
        }
    }
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
        else
            unpack_block_256(format, group, r, out);
    }
}

#endif
