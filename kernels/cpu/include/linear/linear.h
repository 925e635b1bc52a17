/* linear: 16 rows of a packed weight times up to TILE_COLUMNS tokens at once: mat-vec (GEMV) and mat-mul (GEMM) in one.
 * Contract: ollama_zmq/ops/linear.py.
 *
 * The order of float operations, which is what makes bits independent of batch (batch invariance), threads and instruction set. Lane r is row r; blocks
 * come in the order of k; every line below is one rounded operation per lane (fma rounds once), sums of bytes are exact integers:
 *
 *   F32, F16, BF16   total = fma(w, x, total)                                                        for each k
 *   Q4_0 Q5_0 Q8_0   total = fma(float(sum q x) * d, x.scale, total)                                 for each 32
 *   IQ4_NL MXFP4     the same, with table[q] in place of q
 *   Q4_1 Q5_1        the same, then total = fma(m, x.scaled_sum, total)
 *   Q6_K Q3_K GRID   f = fma(float(sum q x), s, f) over 16 sub-blocks; total = fma(f * d, x.scale, total)
 *   IQ4_XS           the same over 8 sub-blocks
 *   Q4_K Q5_K Q2_K   f over 8 or 16 sub-blocks; total = fma(neg_fma(float(sum t x.sums), m, f * d), x.scale, total)
 */
#ifndef OLLAMA_LINEAR_H
#define OLLAMA_LINEAR_H

#include "linear/tiles_k.h"
#include "linear/tiles_lookup.h"
#include "linear/tiles_low.h"
#include "linear/tiles_plain.h"
#include "linear/walk.h"

#define DEFINE_LINEAR(name, format)                                                \
    static void linear_##name(const struct linear_job *job, size_t g0, size_t g1) \
    {                                                                              \
        walk(job, format, g0, g1, tile_##name);                                    \
    }

DEFINE_LINEAR(f32, F32)
DEFINE_LINEAR(f16, F16)
DEFINE_LINEAR(bf16, BF16)
DEFINE_LINEAR(q4_0, Q4_0)
DEFINE_LINEAR(q4_1, Q4_1)
DEFINE_LINEAR(q5_0, Q5_0)
DEFINE_LINEAR(q5_1, Q5_1)
DEFINE_LINEAR(q8_0, Q8_0)
DEFINE_LINEAR(iq4_nl, IQ4_NL)
DEFINE_LINEAR(mxfp4, MXFP4)
DEFINE_LINEAR(q2_k, Q2_K)
DEFINE_LINEAR(q3_k, Q3_K)
DEFINE_LINEAR(q4_k, Q4_K)
DEFINE_LINEAR(q5_k, Q5_K)
DEFINE_LINEAR(q6_k, Q6_K)
DEFINE_LINEAR(iq4_xs, IQ4_XS)
DEFINE_LINEAR(grid, GRID)

#endif
