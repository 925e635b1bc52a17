/* Activations as linear takes them: a panel of up to 12 columns (tokens) at a time, so that a tile reads memory in order.
 *
 *   X_FLOAT   panel = [K][columns] float32                            F32, F16 and BF16 weights
 *   X_32      panel = [K / 32][columns] struct x32, 64 bytes          formats with blocks of 32
 *   X_256     panel = [K / 256][columns] struct x256, 448 bytes       formats with blocks of 256
 *
 * Quantized values are round-to-nearest-even(x * (127 / max|x|)) with scale max|x| / 127. Weights are stored with an offset
 * (q + 8, q + 128 ...), so the integer sum over a block is taken back by starting it at -offset * sum(x): those starts stand here
 * ready for every offset. A NaN or infinity among the values makes the scale one, and so the output.
 */
#ifndef OLLAMA_ACTIVATIONS_H
#define OLLAMA_ACTIVATIONS_H

#include "formats/formats.h"

struct x32 {
    int8_t q[32];
    float scale;
    float scaled_sum;                   /* scale * sum(q), meets the minimums of Q4_1 and Q5_1 */
    int32_t start8, start16, start128;  /* -offset * sum(q) */
    int32_t unused[3];
};

struct x256 {
    int8_t q[256];
    int32_t start32[16];                /* -32 * sum of each 16 */
    int32_t start4[8];                  /* -4 * sum of every other 16, from the first on */
    int32_t start128[8];                /* -128 * sum of each 32 */
    int16_t sums[8];                    /* sum of each 32, meets the minimums of Q4_K and Q5_K */
    int16_t sums16[16];                 /* sum of each 16, meets those of Q2_K */
    float scale;
    int32_t unused[3];
};

_Static_assert(sizeof(struct x32) == 64 && sizeof(struct x256) == 448, "whole cache lines");

/* Bytes of one column. */
static inline size_t activation_nbytes(enum activation kind, size_t K)
{
    return kind == X_FLOAT ? K * sizeof(float) : kind == X_32 ? K / 32 * sizeof(struct x32) : K / 256 * sizeof(struct x256);
}

/* Where column t of T stands: its panel, its place in it, and how many columns the panel has. */
struct column { size_t first, place, columns; };

static inline struct column column_of(size_t t, size_t T, size_t panel_columns)
{
    size_t first = t / panel_columns * panel_columns;
    return (struct column){first, t - first, T - first < panel_columns ? T - first : panel_columns};
}

#endif
