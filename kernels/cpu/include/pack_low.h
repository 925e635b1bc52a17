/* Packing of the formats of two and three bits and of those with tables. Included by pack.h. */
#ifndef OLLAMA_PACK_LOW_H
#define OLLAMA_PACK_LOW_H

static void pack_mxfp4(const struct source_rows *rows, size_t K, struct packed_mxfp4 *out)
{
    for (size_t b = 0; b < K / 32; b++)
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_mxfp4 *in = FILE_BLOCK(file_mxfp4, r, b);
            out[b].e[r] = in->e;
            for (int i = 0; i < 4; i++) out[b].q[i][r] = in->q[i];
        }
}

static void pack_q2_k(const struct source_rows *rows, size_t K, struct packed_q2_k *out)
{
    for (size_t b = 0; b < K / 256; b++) {
        memset(out[b].scales, 0, sizeof out[b].scales);
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_q2_k *in = FILE_BLOCK(file_q2_k, r, b);
            out[b].d[r] = in->d;
            out[b].m[r] = in->m;
            for (int j = 0; j < 16; j++) {
                out[b].scales[j / 4][scale_at(j, r)] |= in->scales[j] & 0x0f;
                out[b].scales[j / 4][minimum_at(j, r)] |= in->scales[j] & 0xf0;
            }
            for (int i = 0; i < 16; i++) out[b].q[i][r] = in->q[i];
        }
    }
}

/* Words i = 0..7 of 32 k from 32 c on: a 3-bit value in each byte. */
static inline uint32_t file_three_bits(const struct file_q3_k *in, int c, int i)
{
    uint32_t low = in->low[c / 4 * 8 + i] >> 2 * (c % 4) & 0x03030303u;
    return low | (in->high[i] >> c & 0x01010101u) << 2;
}

static void pack_q3_k(const struct source_rows *rows, size_t K, struct packed_q3_k *out)
{
    for (size_t b = 0; b < K / 256; b++)
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_q3_k *in = FILE_BLOCK(file_q3_k, r, b);
            out[b].d[r] = in->d;
            for (int i = 0; i < 12; i++) out[b].scales[i / 4][16 * (i % 4) + r] = in->scales[i];
            for (int c = 0; c < 8; c++) {
                uint32_t six = file_three_bits(in, c, 3) | file_three_bits(in, c, 7) << 3;
                for (int i = 0; i < 3; i++) {
                    uint32_t both = file_three_bits(in, c, i) | file_three_bits(in, c, 4 + i) << 3;
                    out[b].q[c][i][r] = both | (six >> 2 * i & 0x03030303u) << 6;
                }
            }
        }
}

static void pack_iq4_xs(const struct source_rows *rows, size_t K, struct packed_iq4_xs *out)
{
    for (size_t b = 0; b < K / 256; b++)
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_iq4_xs *in = FILE_BLOCK(file_iq4_xs, r, b);
            out[b].d[r] = in->d;
            out[b].high[r] = in->high;
            out[b].low[r] = in->low;
            for (int i = 0; i < 32; i++) out[b].q[i][r] = in->q[i];
        }
}

static void pack_grid(const struct source_rows *rows, size_t K, struct packed_grid *out)
{
    for (size_t b = 0; b < K / 256; b++)
        for (int r = 0; r < GROUP_ROWS; r++) {
            const struct file_grid *in = FILE_BLOCK(file_grid, r, b);
            out[b].d[r] = in->d;
            out[b].table[r] = in->table;
            for (int n = 0; n < 16; n++) out[b].scales[n][r] = in->scales[n];
            for (int i = 0; i < 32; i++) out[b].q[i][r] = in->q[i];
        }
}

#endif
