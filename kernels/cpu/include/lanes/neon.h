/* Sixteen lanes on Arm's Advanced SIMD: four registers each. What the words mean stands in lanes/generic.h.
 *
 * Compiled twice: for every ARMv8-A CPU, and with SDOT for those that have it (2018 on). SDOT multiplies signed bytes by signed
 * ones; weights are at most 63 or are brought there by taking their offset of 128 off, so signed is what they are.
 */
#ifndef OLLAMA_LANES_H
#define OLLAMA_LANES_H

#include <arm_neon.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "formats/half.h"

enum { LANES = 16 };
#define TILE_COLUMNS 4
#define TILE_SIZES(size) size(1) size(2) size(3) size(4)
#define ACCUMULATORS 6
#define UNROLL _Pragma("GCC unroll 16")

typedef struct { float32x4_t a, b, c, d; } f32;
typedef struct { int32x4_t a, b, c, d; } i32;
typedef struct { uint8x16_t a, b, c, d; } u8;

#define SAME(type, f, ...) ((type){f(__VA_ARGS__), f(__VA_ARGS__), f(__VA_ARGS__), f(__VA_ARGS__)})
#define EACH(type, f, x) ((type){f((x).a), f((x).b), f((x).c), f((x).d)})
#define EACH2(type, f, x, y) ((type){f((x).a, (y).a), f((x).b, (y).b), f((x).c, (y).c), f((x).d, (y).d)})
#define EACH3(type, f, x, y, z) \
    ((type){f((x).a, (y).a, (z).a), f((x).b, (y).b, (z).b), f((x).c, (y).c, (z).c), f((x).d, (y).d, (z).d)})

static inline f32 f32_set(float x) { return SAME(f32, vdupq_n_f32, x); }
static inline f32 f32_zero(void) { return f32_set(0); }
static inline f32 f32_load(const float *p) { return (f32){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }

static inline void f32_store(float *p, f32 v)
{
    vst1q_f32(p, v.a);
    vst1q_f32(p + 4, v.b);
    vst1q_f32(p + 8, v.c);
    vst1q_f32(p + 12, v.d);
}

static inline f32 f32_load_first(const float *p, int n)
{
    float lane[LANES] = {0};
    memcpy(lane, p, n * sizeof *p);
    return f32_load(lane);
}

static inline void f32_store_first(float *p, f32 v, int n)
{
    float lane[LANES];
    f32_store(lane, v);
    memcpy(p, lane, n * sizeof *p);
}

/* Ones in the lanes from `first` on that are before n. */
static inline uint32x4_t lanes_before(int n, int first)
{
    static const int32_t numbers[4] = {0, 1, 2, 3};
    return vcgtq_s32(vdupq_n_s32(n - first), vld1q_s32(numbers));
}

static inline f32 f32_first(int n, f32 x, f32 y)
{
    return (f32){vbslq_f32(lanes_before(n, 0), x.a, y.a), vbslq_f32(lanes_before(n, 4), x.b, y.b),
                 vbslq_f32(lanes_before(n, 8), x.c, y.c), vbslq_f32(lanes_before(n, 12), x.d, y.d)};
}

static inline f32 f32_add(f32 x, f32 y) { return EACH2(f32, vaddq_f32, x, y); }
static inline f32 f32_sub(f32 x, f32 y) { return EACH2(f32, vsubq_f32, x, y); }
static inline f32 f32_mul(f32 x, f32 y) { return EACH2(f32, vmulq_f32, x, y); }
static inline f32 f32_div(f32 x, f32 y) { return EACH2(f32, vdivq_f32, x, y); }
static inline f32 f32_fma(f32 x, f32 y, f32 z) { return EACH3(f32, vfmaq_f32, z, x, y); }
static inline f32 f32_neg_fma(f32 x, f32 y, f32 z) { return EACH3(f32, vfmsq_f32, z, x, y); }

/* FMAX and FMIN would make a NaN of either; by comparison the second stays, as in every other vocabulary. */
static inline float32x4_t larger(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
static inline float32x4_t smaller(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
static inline f32 f32_max(f32 x, f32 y) { return EACH2(f32, larger, x, y); }
static inline f32 f32_min(f32 x, f32 y) { return EACH2(f32, smaller, x, y); }

static inline f32 f32_where_less(f32 x, f32 y, f32 yes, f32 no)
{
    return (f32){vbslq_f32(vcltq_f32(x.a, y.a), yes.a, no.a), vbslq_f32(vcltq_f32(x.b, y.b), yes.b, no.b),
                 vbslq_f32(vcltq_f32(x.c, y.c), yes.c, no.c), vbslq_f32(vcltq_f32(x.d, y.d), yes.d, no.d)};
}

static inline f32 f32_of_i32(i32 x) { return EACH(f32, vcvtq_f32_s32, x); }

static inline i32 widened(uint16x8_t low, uint16x8_t high)
{
    return (i32){vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_high_u16(low)),
                 vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_high_u16(high))};
}

static inline i32 i32_of_u16(const uint16_t *p) { return widened(vld1q_u16(p), vld1q_u16(p + 8)); }
static inline i32 i32_of_u8(const uint8_t *p) { return widened(vmovl_u8(vld1_u8(p)), vmovl_u8(vld1_u8(p + 8))); }

static inline f32 f32_of_i8(const int8_t *p)
{
    int16x8_t low = vmovl_s8(vld1_s8(p)), high = vmovl_s8(vld1_s8(p + 8));
    return f32_of_i32((i32){vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)});
}

static inline float32x4_t four_of_half(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline float32x4_t four_of_bfloat(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline uint16x4_t four_to_half(float32x4_t x) { return vreinterpret_u16_f16(vcvt_f16_f32(x)); }

static inline f32 f32_of_half(const uint16_t *p)
{
    return (f32){four_of_half(p), four_of_half(p + 4), four_of_half(p + 8), four_of_half(p + 12)};
}

static inline f32 f32_of_bfloat(const uint16_t *p)
{
    return (f32){four_of_bfloat(p), four_of_bfloat(p + 4), four_of_bfloat(p + 8), four_of_bfloat(p + 12)};
}

static inline void half_store(uint16_t *p, f32 v)
{
    vst1q_u16(p, vcombine_u16(four_to_half(v.a), four_to_half(v.b)));
    vst1q_u16(p + 8, vcombine_u16(four_to_half(v.c), four_to_half(v.d)));
}

static inline i32 i32_bits(f32 x) { return EACH(i32, vreinterpretq_s32_f32, x); }
static inline f32 f32_bits(i32 x) { return EACH(f32, vreinterpretq_f32_s32, x); }
static inline i32 i32_set(int32_t x) { return SAME(i32, vdupq_n_s32, x); }
static inline i32 i32_zero(void) { return i32_set(0); }
static inline i32 i32_load(const void *p) { i32 v; memcpy(&v, p, sizeof v); return v; }
static inline i32 i32_add(i32 x, i32 y) { return EACH2(i32, vaddq_s32, x, y); }
static inline i32 i32_and(i32 x, i32 y) { return EACH2(i32, vandq_s32, x, y); }
static inline i32 i32_or(i32 x, i32 y) { return EACH2(i32, vorrq_s32, x, y); }
static inline i32 i32_max(i32 x, i32 y) { return EACH2(i32, vmaxq_s32, x, y); }
static inline i32 i32_shl(i32 x, int n) { return EACH2(i32, vshlq_s32, x, i32_set(n)); }
static inline int32x4_t shifted_right(int32x4_t x, int32x4_t n)
{
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x), vnegq_s32(n)));
}

static inline i32 i32_shr(i32 x, int n) { return EACH2(i32, shifted_right, x, i32_set(n)); }
static inline int32_t i32_max_lane(i32 x) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.a, x.b), vmaxq_s32(x.c, x.d))); }
static inline int32_t i32_sum_lanes(i32 x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }

static inline void i8_store(int8_t *p, i32 x)
{
    int16x8_t low = vcombine_s16(vmovn_s32(x.a), vmovn_s32(x.b)), high = vcombine_s16(vmovn_s32(x.c), vmovn_s32(x.d));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

static inline u8 u8_load(const void *from)
{
    const uint8_t *p = from;
    return (u8){vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)};
}

static inline void u8_store(void *to, u8 v)
{
    uint8_t *p = to;
    vst1q_u8(p, v.a);
    vst1q_u8(p + 16, v.b);
    vst1q_u8(p + 32, v.c);
    vst1q_u8(p + 48, v.d);
}

static inline u8 u8_set(int x) { return SAME(u8, vdupq_n_u8, (uint8_t)x); }
static inline u8 u8_and(u8 x, int mask) { return EACH2(u8, vandq_u8, x, u8_set(mask)); }
static inline u8 u8_add(u8 x, int n) { return EACH2(u8, vaddq_u8, x, u8_set(n)); }
static inline u8 u8_table(const uint8_t *p) { return SAME(u8, vld1q_u8, p); }
static inline u8 u8_lookup(u8 table, u8 x) { return EACH2(u8, vqtbl1q_u8, table, x); }
static inline u8 u8_or(u8 x, u8 y) { return EACH2(u8, vorrq_u8, x, y); }

/* USHL shifts each byte by a signed count: to the right where it is negative. */
static inline uint8x16_t shifted(uint8x16_t x, uint8x16_t count) { return vshlq_u8(x, vreinterpretq_s8_u8(count)); }
static inline u8 u8_shl(u8 x, int n) { return EACH2(u8, shifted, x, u8_set(n)); }
static inline u8 u8_shr(u8 x, int n) { return EACH2(u8, shifted, x, u8_set(-n)); }

/* Without SDOT: products of 16 bits, neighbours added (at most 128 * 127 * 2, which fits), and those pairs added to the sum. */
static inline int32x4_t dot_signed(int32x4_t sum, uint8x16_t unsigned_w, int8x16_t x)
{
    int8x16_t w = vreinterpretq_s8_u8(unsigned_w);
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, w, x);
#else
    return vpadalq_s16(sum, vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x)));
#endif
}

static inline int8x16_t four_everywhere(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

static inline i32 i32_dot(i32 acc, u8 w, const int8_t *x)
{
    int8x16_t four = four_everywhere(x);
    return (i32){dot_signed(acc.a, w.a, four), dot_signed(acc.b, w.b, four), dot_signed(acc.c, w.c, four), dot_signed(acc.d, w.d, four)};
}

static inline i32 i32_dot4(i32 acc, const u8 *w, const int8_t *x)
{
    return i32_dot(i32_dot(i32_dot(i32_dot(acc, w[0], x), w[1], x + 4), w[2], x + 8), w[3], x + 12);
}

static inline i32 i32_dot4_scaled(i32 acc, const u8 *w, const int8_t *x, const uint8_t *scale)
{
    return i32_add(acc, EACH2(i32, vmulq_s32, i32_dot4(i32_zero(), w, x), i32_of_u8(scale)));
}

static inline i32 i32_start128(const int32_t *start) { (void)start; return i32_zero(); }

static inline i32 i32_dot128(i32 acc, u8 w, const int8_t *x)
{
    return i32_dot(acc, EACH2(u8, veorq_u8, w, u8_set(0x80)), x);
}

static inline u8 u8_table127(const uint8_t *p) { return EACH2(u8, veorq_u8, u8_table(p), u8_set(0x80)); }
static inline i32 i32_dot127(i32 acc, u8 w, const int8_t *x) { return i32_dot(acc, w, x); }

static inline int32x4_t dot_four_pairs(int32x4_t sum, const uint8_t *p, int16x8_t two)
{
    int16x8_t w = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(p)));
    return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(w), vget_low_s16(two)), vmull_high_s16(w, two)));
}

static inline i32 i32_dot_pairs(i32 acc, const uint8_t *p, const int16_t *x)
{
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    int16x8_t two = vreinterpretq_s16_s32(vdupq_n_s32(pair));
    return (i32){dot_four_pairs(acc.a, p, two), dot_four_pairs(acc.b, p + 8, two),
                 dot_four_pairs(acc.c, p + 16, two), dot_four_pairs(acc.d, p + 24, two)};
}

/* The trees of lanes/common.h in registers. */
#define LANES_HAVE_TREES

static inline float f32_sum_lanes(f32 v)
{
    float32x4_t four = vaddq_f32(vaddq_f32(v.a, v.c), vaddq_f32(v.b, v.d));
    return vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
}

static inline float f32_max_lane(f32 v)
{
    float32x4_t four = larger(larger(v.a, v.c), larger(v.b, v.d)), two = larger(four, vextq_f32(four, four, 2));
    return vgetq_lane_f32(larger(two, vdupq_laneq_f32(two, 1)), 0);
}

#include "lanes/common.h"

#endif
