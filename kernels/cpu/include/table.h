/* What all tables are made of, and the table: isa_*.c includes it after its lanes. */
#include "attention/attention.h"
#include "attention/store.h"
#include "linear/linear.h"
#include "linear/quantize.h"
#include "rows/heads.h"
#include "rows/logits.h"
#include "rows/norms.h"
#include "rows/pointwise.h"
#include "rows/rope.h"
#include "rows/routing.h"

#define ROW_KERNEL(name) [ROW_##name] = row_##name,
#define KERNEL_TABLE(isa)                                                                                                   \
    {                                                                                                                       \
        .name = isa, .panel_columns = TILE_COLUMNS, .pack_activation = pack_activation, .rows = {LANE_ROWS(ROW_KERNEL)},    \
        .attention = attention, .attention_split = attention_split, .attention_join = attention_join,                       \
        .store_keys = {store_keys_f16, store_keys_q8_0}, .store_values = {store_values_f16, store_values_q8_0},             \
        .column_maxima = column_maxima, .find_from = find_from, .exp_sum = exp_sum,                                         \
        .linear = {                                                                                                         \
            [F32] = linear_f32, [F16] = linear_f16, [BF16] = linear_bf16, [Q4_0] = linear_q4_0, [Q4_1] = linear_q4_1,       \
            [Q5_0] = linear_q5_0, [Q5_1] = linear_q5_1, [Q8_0] = linear_q8_0, [Q4_K] = linear_q4_k, [Q5_K] = linear_q5_k,   \
            [Q6_K] = linear_q6_k, [IQ4_NL] = linear_iq4_nl, [MXFP4] = linear_mxfp4, [Q2_K] = linear_q2_k,                   \
            [Q3_K] = linear_q3_k, [IQ4_XS] = linear_iq4_xs, [GRID] = linear_grid,                                           \
        },                                                                                                                  \
    }
