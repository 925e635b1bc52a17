/* Sixteen lanes on AVX-512 with VNNI: one register each. What the words mean stands in lanes/generic.h. */
#ifndef OLLAMA_LANES_H
#define OLLAMA_LANES_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "formats/half.h"

enum { LANES = 16 };
#define TILE_COLUMNS 12
#define TILE_SIZES(size) size(1) size(2) size(3) size(4) size(6) size(8) size(12)
#define ACCUMULATORS 24
#define UNROLL _Pragma("GCC unroll 16")

typedef __m512 f32;
typedef __m512i i32;
typedef __m512i u8;
typedef int32_t __attribute__((may_alias)) any_i32;

static inline __mmask16 first_lanes(int n) { return (__mmask16)((1u << n) - 1); }

static inline f32 f32_zero(void) { return _mm512_setzero_ps(); }
static inline f32 f32_set(float a) { return _mm512_set1_ps(a); }
static inline f32 f32_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void f32_store(float *p, f32 v) { _mm512_storeu_ps(p, v); }
static inline f32 f32_load_first(const float *p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
static inline void f32_store_first(float *p, f32 v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
static inline f32 f32_first(int n, f32 a, f32 b) { return _mm512_mask_blend_ps(first_lanes(n), b, a); }
static inline f32 f32_add(f32 a, f32 b) { return _mm512_add_ps(a, b); }
static inline f32 f32_sub(f32 a, f32 b) { return _mm512_sub_ps(a, b); }
static inline f32 f32_mul(f32 a, f32 b) { return _mm512_mul_ps(a, b); }
static inline f32 f32_div(f32 a, f32 b) { return _mm512_div_ps(a, b); }
static inline f32 f32_fma(f32 a, f32 b, f32 c) { return _mm512_fmadd_ps(a, b, c); }
static inline f32 f32_neg_fma(f32 a, f32 b, f32 c) { return _mm512_fnmadd_ps(a, b, c); }
static inline f32 f32_max(f32 a, f32 b) { return _mm512_max_ps(a, b); }
static inline f32 f32_min(f32 a, f32 b) { return _mm512_min_ps(a, b); }

static inline f32 f32_where_less(f32 a, f32 b, f32 yes, f32 no)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}

static inline f32 f32_of_i32(i32 a) { return _mm512_cvtepi32_ps(a); }
static inline __m128i load_16_bytes(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
static inline __m256i load_32_bytes(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline f32 f32_of_i8(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_16_bytes(p))); }
static inline f32 f32_of_half(const uint16_t *p) { return _mm512_cvtph_ps(load_32_bytes(p)); }

static inline f32 f32_of_bfloat(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_32_bytes(p)), 16));
}

static inline void half_store(uint16_t *p, f32 v)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline i32 i32_bits(f32 a) { return _mm512_castps_si512(a); }
static inline f32 f32_bits(i32 a) { return _mm512_castsi512_ps(a); }
static inline i32 i32_zero(void) { return _mm512_setzero_si512(); }
static inline i32 i32_set(int32_t a) { return _mm512_set1_epi32(a); }
static inline i32 i32_load(const void *p) { return _mm512_loadu_si512(p); }
static inline i32 i32_of_u8(const uint8_t *p) { return _mm512_cvtepu8_epi32(load_16_bytes(p)); }
static inline i32 i32_of_u16(const uint16_t *p) { return _mm512_cvtepu16_epi32(load_32_bytes(p)); }
static inline i32 i32_add(i32 a, i32 b) { return _mm512_add_epi32(a, b); }
static inline i32 i32_and(i32 a, i32 b) { return _mm512_and_si512(a, b); }
static inline i32 i32_or(i32 a, i32 b) { return _mm512_or_si512(a, b); }
static inline i32 i32_max(i32 a, i32 b) { return _mm512_max_epi32(a, b); }
static inline i32 i32_shl(i32 a, int n) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(n)); }
static inline i32 i32_shr(i32 a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }
static inline int32_t i32_max_lane(i32 a) { return _mm512_reduce_max_epi32(a); }
static inline int32_t i32_sum_lanes(i32 a) { return _mm512_reduce_add_epi32(a); }
static inline void i8_store(int8_t *p, i32 a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a)); }

static inline u8 u8_load(const void *p) { return _mm512_loadu_si512(p); }
static inline u8 u8_and(u8 a, int mask) { return _mm512_and_si512(a, _mm512_set1_epi8((char)mask)); }
static inline u8 u8_or(u8 a, u8 b) { return _mm512_or_si512(a, b); }
static inline u8 u8_add(u8 a, int n) { return _mm512_add_epi8(a, _mm512_set1_epi8((char)n)); }
static inline u8 u8_table(const uint8_t *p) { return _mm512_broadcast_i32x4(load_16_bytes(p)); }
static inline u8 u8_lookup(u8 table, u8 a) { return _mm512_shuffle_epi8(table, a); }
static inline void u8_store(void *p, u8 a) { _mm512_storeu_si512(p, a); }
static inline u8 u8_shl(u8 a, int n) { return _mm512_sll_epi16(a, _mm_cvtsi32_si128(n)); }
static inline u8 u8_shr(u8 a, int n) { return _mm512_srl_epi16(a, _mm_cvtsi32_si128(n)); }

/* Written out because compilers emit a separate broadcast: the embedded one is worth 5-13 % of a mat-mul. */
static inline i32 i32_dot(i32 acc, u8 w, const int8_t *x)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const any_i32 *)x));
    return acc;
}

static inline i32 i32_dot4(i32 acc, const u8 *w, const int8_t *x)
{
    return i32_dot(i32_dot(i32_dot(i32_dot(acc, w[0], x), w[1], x + 4), w[2], x + 8), w[3], x + 12);
}

static inline i32 i32_dot4_scaled(i32 acc, const u8 *w, const int8_t *x, const uint8_t *scale)
{
    return i32_add(acc, _mm512_mullo_epi32(i32_dot4(i32_zero(), w, x), i32_of_u8(scale)));
}

static inline i32 i32_start128(const int32_t *start) { return i32_set(*start); }
static inline i32 i32_dot128(i32 acc, u8 w, const int8_t *x) { return i32_dot(acc, w, x); }
static inline u8 u8_table127(const uint8_t *p) { return u8_table(p); }
static inline i32 i32_dot127(i32 acc, u8 w, const int8_t *x) { return i32_dot(acc, w, x); }

static inline i32 i32_dot_pairs(i32 acc, const uint8_t *p, const int16_t *x)
{
    return _mm512_dpwssd_epi32(acc, _mm512_cvtepu8_epi16(load_32_bytes(p)), i32_set(*(const any_i32 *)x));
}

/* The trees of lanes/common.h in registers, the same sums in the same order. */
#define LANES_HAVE_TREES

static inline float f32_sum_lanes(f32 v)
{
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline float f32_max_lane(f32 v)
{
    __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#include "lanes/common.h"

#endif
