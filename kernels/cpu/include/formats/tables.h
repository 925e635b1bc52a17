/* What 4-bit numbers stand for in the formats that look values up. An offset is added, so that a byte shuffle gives the unsigned
 * operand of i32_dot or i32_dot128; sums start at -offset * sum(x).
 */
#ifndef OLLAMA_TABLES_H
#define OLLAMA_TABLES_H

#include <stdint.h>

enum { MXFP4_OFFSET = 16, IQ4_OFFSET = 128, GRID_OFFSET = 64, GRID_TABLES = 4 };

/* Source: ggml-common.h, kvalues_mxfp4 (twice the values of E2M1) and kvalues_iq4nl. */
static const uint8_t mxfp4_table[16] = {
    16 + 0, 16 + 1, 16 + 2, 16 + 3, 16 + 4, 16 + 6, 16 + 8, 16 + 12, 16 - 0, 16 - 1, 16 - 2, 16 - 3, 16 - 4, 16 - 6, 16 - 8, 16 - 12,
};
static const uint8_t iq4_table[16] = {
    128 - 127, 128 - 104, 128 - 83, 128 - 65, 128 - 49, 128 - 35, 128 - 22, 128 - 10,
    128 + 1, 128 + 13, 128 + 25, 128 + 38, 128 + 53, 128 + 69, 128 + 89, 128 + 113,
};

/* Tables of GRID: the values that grids hold with both signs, rising, and the power of two that scales are short of.
 *
 *   0   IQ2_XXS, IQ2_XS, IQ2_S   d (2 s + 1) / 8 times 8, 25 or 43
 *   1   IQ3_XXS                  d (2 s + 1) / 4 times 4, 12 ... 52 or 62
 *   2   IQ3_S                    d (2 s + 1) times 1, 3 ... 15
 *   3   IQ1_S, IQ1_M             d (2 s + 1) / 8 times 8 g + 1 or 8 g - 1, g = -1, 0 or 1
 */
struct grid_table { uint8_t values[16]; float unit; };

static const struct grid_table grid_tables[GRID_TABLES] = {
    {{64 - 43, 64 - 25, 64 - 8, 64 + 8, 64 + 25, 64 + 43}, 0.125f},
    {{64 - 62, 64 - 52, 64 - 44, 64 - 36, 64 - 28, 64 - 20, 64 - 12, 64 - 4,
      64 + 4, 64 + 12, 64 + 20, 64 + 28, 64 + 36, 64 + 44, 64 + 52, 64 + 62}, 0.25f},
    {{64 - 15, 64 - 13, 64 - 11, 64 - 9, 64 - 7, 64 - 5, 64 - 3, 64 - 1,
      64 + 1, 64 + 3, 64 + 5, 64 + 7, 64 + 9, 64 + 11, 64 + 13, 64 + 15}, 1.0f},
    {{64 - 9, 64 - 7, 64 - 1, 64 + 1, 64 + 7, 64 + 9}, 0.125f},
};

#endif
