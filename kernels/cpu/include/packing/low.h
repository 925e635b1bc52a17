/* Packing of the formats of two and three bits and of those with tables. */
#ifndef OLLAMA_PACK_LOW_H
#define OLLAMA_PACK_LOW_H

#include "packing/rows.h"

static void pack_mxfp4(struct source_rows *in, size_t K, struct packed_mxfp4 *out)
{
    EACH_BLOCK(32, file_mxfp4) {
        for (int r = 0; r < 16; r++) out[b].e[r] = in->block[r][offsetof(struct file_mxfp4, e)];
        WORDS(file_mxfp4, q, 4, out[b].q);
    }
}

static void pack_q2_k(struct source_rows *in, size_t K, struct packed_q2_k *out)
{
    EACH_BLOCK(256, file_q2_k) {
        uint8_t file[16][16], scales[16][16], minimums[16][16];
        HALVES(file_q2_k, d, out[b].d);
        HALVES(file_q2_k, m, out[b].m);
        BYTES(file_q2_k, scales, 4, file);
        for (int j = 0; j < 16; j++)
            for (int r = 0; r < 16; r++) {
                scales[j][r] = file[j][r] & 0x0f;
                minimums[j][r] = file[j][r] & 0xf0;
            }
        for (int j = 0; j < 16; j += 2) join_scales(scales + j, minimums + j, out[b].scales[j / 4] + 16 * (j % 4));
        WORDS(file_q2_k, q, 16, out[b].q);
    }
}

/* Words i = 0..7 of 32 k from 32 c on: a 3-bit value in each byte. */
static inline void three_bits(const uint32_t (*low)[16], const uint32_t (*high)[16], int c, uint32_t (*out)[16])
{
    for (int i = 0; i < 8; i++)
        for (int r = 0; r < 16; r++)
            out[i][r] = (low[c / 4 * 8 + i][r] >> 2 * (c % 4) & 0x03030303u) | (high[i][r] >> c & 0x01010101u) << 2;
}

static void pack_q3_k(struct source_rows *in, size_t K, struct packed_q3_k *out)
{
    EACH_BLOCK(256, file_q3_k) {
        uint32_t low[16][16], high[8][16], q[8][16];
        HALVES(file_q3_k, d, out[b].d);
        BYTES(file_q3_k, scales, 3, (uint8_t (*)[16])out[b].scales);
        WORDS(file_q3_k, low, 16, low);
        WORDS(file_q3_k, high, 8, high);
        for (int c = 0; c < 8; c++) {
            three_bits(low, high, c, q);
            for (int i = 0; i < 3; i++)
                for (int r = 0; r < 16; r++) {
                    uint32_t six = q[3][r] | q[7][r] << 3;
                    out[b].q[c][i][r] = q[i][r] | q[4 + i][r] << 3 | (six >> 2 * i & 0x03030303u) << 6;
                }
        }
    }
}

static void pack_iq4_xs(struct source_rows *in, size_t K, struct packed_iq4_xs *out)
{
    EACH_BLOCK(256, file_iq4_xs) {
        HALVES(file_iq4_xs, d, out[b].d);
        HALVES(file_iq4_xs, high, out[b].high);
        WORDS(file_iq4_xs, low, 1, &out[b].low);
        WORDS(file_iq4_xs, q, 32, out[b].q);
    }
}

static void pack_grid(struct source_rows *in, size_t K, struct packed_grid *out)
{
    EACH_BLOCK(256, file_grid) {
        HALVES(file_grid, d, out[b].d);
        for (int r = 0; r < 16; r++) out[b].table[r] = in->block[r][offsetof(struct file_grid, table)];
        BYTES(file_grid, scales, 4, (uint8_t (*)[16])out[b].scales);
        WORDS(file_grid, q, 32, out[b].q);
    }
}

#endif
