/* The tensor types the kernels know, in files and packed.
 *
 * A file keeps a weight [N, K] row by row, each row in blocks of 32 or 256 values. Packed, 16 rows stand together: a vector of
 * 64 bytes holds 4 consecutive k (one byte each) of 16 rows, so that SIMD lane r owns row r, sums need no shuffle, scales are
 * vectors and outputs are stored as they are. Rows are padded with zeros to a multiple of 16; otherwise packed bytes = file bytes.
 *
 *   bytes of 16 rows, in order                                                            per block        value of k
 *   F32, BF16, F16   [k][16 rows]                                                         64 / 32 B        w
 *   Q4_0   d[16] f16 | 4 x 64 B: low half k = 4i+t, high half k = 16+4i+t                 32 k    288 B    d (q - 8)
 *   Q4_1   d[16], m[16] f16 | the same 4 x 64 B                                           32 k    320 B    d q + m
 *   Q5_0   d[16] | 64 B: bit i of byte 4r+t is the fifth bit of k = 4i+t | 4 x 64 B       32 k    352 B    d (q - 16)
 *   Q5_1   d[16], m[16] | 64 B | 4 x 64 B                                                 32 k    384 B    d q + m
 *   Q8_0   d[16] | 8 x 64 B of q + 128                                                    32 k    544 B    d q
 *   IQ4_NL d[16] | 4 x 64 B as Q4_0                                                       32 k    288 B    d table[q]
 *   MXFP4  e[16] bytes | 4 x 64 B as Q4_0                                                 32 k    272 B    2^(e - 128) table[q]
 *   Q2_K   d[16], m[16] | 4 x 64 B of 4-bit scales | 16 x 64 B                            256 k  1344 B    d s q - m t
 *   Q3_K   d[16] | 3 x 64 B of 6-bit scales | 8 x 3 x 64 B                                256 k  1760 B    d (s - 32) (q - 4)
 *   Q4_K   d[16], m[16] | 3 x 64 B of 6-bit scales | 32 x 64 B                            256 k  2304 B    d s q - m t
 *   Q5_K   d[16], m[16] | 3 x 64 B | 4 pairs of (2 x 64 B of fifth bits | 8 x 64 B)       256 k  2816 B    d s q - m t
 *   Q6_K   d[16] | 4 chunks of (s[4][16] i8 | 4 x (64 B high bits | 2 x 64 B low bits))   256 k  3360 B    d s (q - 32)
 *   IQ4_XS d[16], h[16] 16-bit | l[16] 32-bit | 8 x 4 x 64 B, each 4 as Q4_0              256 k  2176 B    d (s - 32) table[q]
 *   GRID   d[16] | table[16] bytes | s[16 sub-blocks][16] i8 | 32 x 64 B as Q4_K          256 k  2352 B    d unit s table[q]
 *
 * GRID is in no file: types whose blocks look values up in grids are brought to it at load (recode.py). Its rows tell by number
 * which table they use, all rows of a weight the same one. The tables stand in tables.h.
 *
 * Scales s and minimums t of Q4_K and Q5_K, sub-blocks j = 0..7 of 32 k, row r:
 *   scale of j        low 4 bits in scales[j / 4][16 (j % 4) + r] bits 0-3, high 2 in scales[2][16 (j % 4) + r] bits 0-1 (j < 4) or 4-5
 *   minimum of j      the same with byte 32 (j % 4 / 2) + 2 r + j % 2, bits 4-7, and bits 2-3 or 6-7
 * so that minimums widen into the pairs that a 16-bit dot product takes. Nibble vector i of pair p of Q4_K and Q5_K holds sub-block
 * 2p in its low and 2p + 1 in its high halves; their fifth bits are bits 2 (i % 4) and 2 (i % 4) + 1 of fifth-bit vector i / 4 of the
 * pair. Chunk c of Q6_K is sub-blocks 4 c + u: vectors i hold k = 4 i + t of each, low bits of u in the low (u < 2) or high halves of
 * low[u % 2], high bits in bits 2u of high. IQ4_XS's scale of j: bits 4 j and up of l[r], bits 2 j and up of h[r].
 *
 * Sub-blocks j = 0..15 of 16 k of Q2_K and Q3_K:
 *   scale of Q2_K     scales[j / 4][16 (j % 4) + r] bits 0-3; its minimum where Q4_K has it, j / 4 counting to 3
 *   scale of Q3_K     low 4 bits in scales[j % 8 / 4][16 (j % 4) + r] bits 4 (j / 8) and up, high 2 in scales[2], bits 2 (j / 4)
 *   q of Q2_K         bits 2u of vector 8 h + 4 p + i belong to sub-block 8 h + 2 u + p
 *   q of Q3_K         vector i of chunk c has k = 4 i + t of sub-block 2 c in bits 0-2, of 2 c + 1 in bits 3-5; bits 6-7 of the three
 *                     make six bits, 0-2 for k = 12 + t of sub-block 2 c and 3-5 for that of 2 c + 1
 *
 * Parts of a block stand in the order in which they are multiplied, because hardware prefetches what is read in order: on a Zen 4 core
 * Q6_K with all high bits behind all low bits streamed 10 GB/s (23 with software prefetch), in this order 28.
 */
#ifndef OLLAMA_FORMATS_H
#define OLLAMA_FORMATS_H

#include <stddef.h>
#include <stdint.h>

enum { GROUP_ROWS = 16 };

enum format {
    F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS, GRID, FORMATS
};

/* How the activations that meet a format are kept: see activations.h. */
enum activation { X_FLOAT, X_32, X_256, ACTIVATIONS };

struct format_info {
    int ggml_id;            /* -1: in no file */
    int block_size;         /* values of k per block */
    int block_nbytes;       /* bytes of one row's block */
    enum activation x;
};

static const struct format_info format_infos[FORMATS] = {
    [F32] = {0, 1, 4, X_FLOAT},     [F16] = {1, 1, 2, X_FLOAT},     [BF16] = {30, 1, 2, X_FLOAT},
    [Q4_0] = {2, 32, 18, X_32},     [Q4_1] = {3, 32, 20, X_32},     [Q5_0] = {6, 32, 22, X_32},
    [Q5_1] = {7, 32, 24, X_32},     [Q8_0] = {8, 32, 34, X_32},     [IQ4_NL] = {20, 32, 18, X_32},
    [MXFP4] = {39, 32, 17, X_32},   [Q2_K] = {10, 256, 84, X_256},  [Q3_K] = {11, 256, 110, X_256},
    [Q4_K] = {12, 256, 144, X_256}, [Q5_K] = {13, 256, 176, X_256}, [Q6_K] = {14, 256, 210, X_256},
    [IQ4_XS] = {23, 256, 136, X_256}, [GRID] = {-1, 256, 147, X_256},
};

/* Blocks as they stand in a file. */
#pragma pack(push, 1)
struct file_q4_0 { uint16_t d; uint32_t q[4]; };
struct file_q4_1 { uint16_t d, m; uint32_t q[4]; };
struct file_q5_0 { uint16_t d; uint32_t high; uint32_t q[4]; };
struct file_q5_1 { uint16_t d, m; uint32_t high; uint32_t q[4]; };
struct file_q8_0 { uint16_t d; uint32_t q[8]; };
struct file_mxfp4 { uint8_t e; uint32_t q[4]; };
struct file_q2_k { uint8_t scales[16]; uint32_t q[16]; uint16_t d, m; };
struct file_q3_k { uint32_t high[8], low[16]; uint8_t scales[12]; uint16_t d; };
struct file_q4_k { uint16_t d, m; uint8_t scales[12]; uint32_t q[32]; };
struct file_q5_k { uint16_t d, m; uint8_t scales[12]; uint32_t high[8]; uint32_t q[32]; };
struct file_q6_k { uint32_t low[32], high[16]; int8_t scales[16]; uint16_t d; };
struct file_iq4_xs { uint16_t d, high; uint32_t low, q[32]; };
struct file_grid { uint16_t d; uint8_t table; int8_t scales[16]; uint32_t q[32]; };
#pragma pack(pop)

/* Blocks of 16 rows, packed. A uint32_t is 4 consecutive k of one row. */
struct packed_q4_0 { uint16_t d[16]; uint32_t q[4][16]; };
struct packed_q4_1 { uint16_t d[16], m[16]; uint32_t q[4][16]; };
struct packed_q5_0 { uint16_t d[16]; uint32_t high[16]; uint32_t q[4][16]; };
struct packed_q5_1 { uint16_t d[16], m[16]; uint32_t high[16]; uint32_t q[4][16]; };
struct packed_q8_0 { uint16_t d[16]; uint32_t q[8][16]; };
struct packed_mxfp4 { uint8_t e[16]; uint32_t q[4][16]; };
struct packed_q2_k { uint16_t d[16], m[16]; uint8_t scales[4][64]; uint32_t q[16][16]; };
struct packed_q3_k { uint16_t d[16]; uint8_t scales[3][64]; uint32_t q[8][3][16]; };
struct packed_q4_k { uint16_t d[16], m[16]; uint8_t scales[3][64]; uint32_t q[32][16]; };
struct packed_q5_k {
    uint16_t d[16], m[16];
    uint8_t scales[3][64];
    struct { uint32_t high[2][16], q[8][16]; } pair[4];
};
struct packed_q6_k {
    uint16_t d[16];
    struct { int8_t scales[4][16]; struct { uint32_t high[16], low[2][16]; } q[4]; } chunk[4];
};
struct packed_iq4_xs { uint16_t d[16], high[16]; uint32_t low[16], q[32][16]; };
struct packed_grid { uint16_t d[16]; uint8_t table[16]; int8_t scales[16][16]; uint32_t q[32][16]; };

_Static_assert(sizeof(struct file_q4_k) == 144 && sizeof(struct file_q5_k) == 176, "blocks of ggml-common.h");
_Static_assert(sizeof(struct file_q6_k) == 210 && sizeof(struct file_q8_0) == 34, "blocks of ggml-common.h");
_Static_assert(sizeof(struct file_q2_k) == 84 && sizeof(struct file_q3_k) == 110, "blocks of ggml-common.h");
_Static_assert(sizeof(struct file_iq4_xs) == 136 && sizeof(struct file_mxfp4) == 17, "blocks of ggml-common.h");
_Static_assert(sizeof(struct packed_mxfp4) == 16 * sizeof(struct file_mxfp4), "packed bytes = file bytes");
_Static_assert(sizeof(struct packed_q2_k) == 16 * sizeof(struct file_q2_k), "packed bytes = file bytes");
_Static_assert(sizeof(struct packed_q3_k) == 16 * sizeof(struct file_q3_k), "packed bytes = file bytes");
_Static_assert(sizeof(struct packed_iq4_xs) == 16 * sizeof(struct file_iq4_xs), "packed bytes = file bytes");
_Static_assert(sizeof(struct packed_grid) == 16 * sizeof(struct file_grid), "as long as the block it is packed from");
_Static_assert(sizeof(struct packed_q4_k) == 16 * sizeof(struct file_q4_k), "packed bytes = file bytes");
_Static_assert(sizeof(struct packed_q5_k) == 16 * sizeof(struct file_q5_k), "packed bytes = file bytes");
_Static_assert(sizeof(struct packed_q6_k) == 16 * sizeof(struct file_q6_k), "packed bytes = file bytes");
_Static_assert(sizeof(struct packed_q5_1) == 16 * sizeof(struct file_q5_1), "packed bytes = file bytes");

/* Bytes of one row of K values, in a file and packed alike. */
static inline size_t row_nbytes(enum format format, size_t K)
{
    return K / format_infos[format].block_size * format_infos[format].block_nbytes;
}

/* Groups of 16 rows that N rows take. */
static inline size_t groups_of(size_t N)
{
    return (N + GROUP_ROWS - 1) / GROUP_ROWS;
}

#endif
