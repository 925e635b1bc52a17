/* Words that are made of the words of lanes/*.h, the same for every instruction set. */
#ifndef OLLAMA_LANES_COMMON_H
#define OLLAMA_LANES_COMMON_H

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* To the second-level cache. A macro: as a function GCC finds it free of effects and drops the call. */
#define PREFETCH(p) __builtin_prefetch(p, 0, 2)
#define EACH_COLUMN(c) UNROLL for (int c = 0; c < C; c++)

/* The sum of 16 lanes: l + (l + 8), then + 4, + 2, + 1. Every sum across lanes is this tree, and so is every maximum. */
#ifndef LANES_HAVE_TREES
static inline float f32_sum_lanes(f32 v)
{
    float lane[LANES];
    f32_store(lane, v);
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int l = 0; l < step; l++) lane[l] = lane[l] + lane[l + step];
    return lane[0];
}

static inline float f32_max_lane(f32 v)
{
    float lane[LANES];
    f32_store(lane, v);
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int l = 0; l < step; l++) lane[l] = lane[l] > lane[l + step] ? lane[l] : lane[l + step];
    return lane[0];
}
#endif

static inline f32 f32_of_u8(const uint8_t *p) { return f32_of_i32(i32_of_u8(p)); }

/* 2^(e - 128) for e = 0..255; the right operand of max is what the two that are not normal numbers have as bits. */
static inline f32 f32_of_e8m0(const uint8_t *p)
{
    i32 e = i32_of_u8(p);
    return f32_bits(i32_max(i32_shl(i32_add(e, i32_set(-1)), 23), i32_shl(i32_add(e, i32_set(1)), 21)));
}

/* Nearest integer, ties to even, of |a| < 2^22: adding 1.5 * 2^23 leaves it in the low bits of the sum. */
#define ROUNDING 12582912.0f

static inline i32 i32_round(f32 a)
{
    return i32_add(i32_bits(f32_add(a, f32_set(ROUNDING))), i32_set(-0x4b400000));
}

/* exp(x) within 2 units in the last place, x held to -87..88: 2^n * p(r), x = n ln 2 + r. A NaN stays one.
 *
 * Source: the polynomial of Cephes expf (S. Moshier 1989).
 */
static inline f32 f32_exp(f32 x)
{
    x = f32_min(f32_set(88.0f), f32_max(f32_set(-87.0f), x));
    f32 shifted = f32_fma(x, f32_set(0x1.715476p+0f), f32_set(ROUNDING));
    f32 n = f32_sub(shifted, f32_set(ROUNDING));
    f32 r = f32_neg_fma(n, f32_set(0x1.63p-1f), x);
    r = f32_neg_fma(n, f32_set(-0x1.bd0106p-13f), r);
    f32 p = f32_set(1.9875691500e-4f);
    p = f32_fma(p, r, f32_set(1.3981999507e-3f));
    p = f32_fma(p, r, f32_set(8.3334519073e-3f));
    p = f32_fma(p, r, f32_set(4.1665795894e-2f));
    p = f32_fma(p, r, f32_set(1.6666665459e-1f));
    p = f32_fma(p, r, f32_set(5.0000001201e-1f));
    p = f32_fma(p, f32_mul(r, r), f32_add(r, f32_set(1.0f)));
    i32 exponent = i32_add(i32_bits(shifted), i32_set(127 - 0x4b400000));
    return f32_mul(p, f32_bits(i32_shl(exponent, 23)));
}

#endif
