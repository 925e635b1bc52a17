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
 * Less one it is 2^n * (p(r) - 1) + (2^n - 1), as near to zero as x is.
 *
 * Source: the polynomial of Cephes expf (S. Moshier 1989).
 */
ALWAYS_INLINE f32 f32_exp_less(const int ONE, f32 x)
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
    p = f32_fma(p, f32_mul(r, r), ONE ? r : f32_add(r, f32_set(1.0f)));
    f32 power = f32_bits(i32_shl(i32_add(i32_bits(shifted), i32_set(127 - 0x4b400000)), 23));
    return ONE ? f32_fma(p, power, f32_sub(power, f32_set(1.0f))) : f32_mul(p, power);
}

static inline f32 f32_exp(f32 x) { return f32_exp_less(0, x); }
static inline f32 f32_expm1(f32 x) { return f32_exp_less(1, x); }
static inline f32 f32_abs(f32 x) { return f32_bits(i32_and(i32_bits(x), i32_set(0x7fffffff))); }

/* (e - 1) / (e + 1), e = exp(2x). */
static inline f32 f32_tanh(f32 x)
{
    f32 less = f32_expm1(f32_add(x, x));
    return f32_div(less, f32_add(less, f32_set(2.0f)));
}

/* ln(1 + exp(x)) = max(x, 0) + ln(1 + y), y = exp(-|x|): 2 atanh(s), s = y / (2 + y) up to 1/3, by its series. */
static inline f32 f32_softplus(f32 x)
{
    f32 y = f32_exp(f32_sub(f32_zero(), f32_abs(x))), s = f32_div(y, f32_add(f32_set(2.0f), y)), z = f32_mul(s, s);
    f32 p = f32_set(2.0f / 15);
    for (int k = 13; k > 0; k -= 2) p = f32_fma(p, z, f32_set(2.0f / (float)k));
    return f32_fma(s, p, f32_max(f32_zero(), x));
}

/* erfc(x) of x >= 0 within 1.2e-7 of itself, and rounding.
 *
 * Source: Press et al. 1992, "Numerical Recipes", section 6.2, erfcc.
 */
static inline f32 f32_erfc(f32 x)
{
    static const float terms[] = {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                                  0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
    f32 t = f32_div(f32_set(1.0f), f32_fma(f32_set(0.5f), x, f32_set(1.0f))), p = f32_set(0.17087277f);
    for (int i = 0; i < 9; i++) p = f32_fma(p, t, f32_set(terms[i]));
    return f32_mul(t, f32_exp(f32_neg_fma(x, x, p)));
}

#endif
