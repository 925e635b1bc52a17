/* Sixteen lanes on AVX2 with FMA and F16C: two registers each, and with AVX-VNNI where LANES_VNNI is defined. What the words mean stands in lanes/generic.h. */
#ifndef OLLAMA_LANES_H
#define OLLAMA_LANES_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "formats/half.h"

enum { LANES = 16 };
#define TILE_COLUMNS 4
#define TILE_SIZES(size) size(1) size(2) size(3) size(4)
#define ACCUMULATORS 6
#define UNROLL _Pragma("GCC unroll 16")

typedef struct { __m256 low, high; } f32;
typedef struct { __m256i low, high; } i32;
typedef i32 u8;
typedef int32_t __attribute__((may_alias)) any_i32;

#define BOTH(type, f, ...) ((type){f(__VA_ARGS__), f(__VA_ARGS__)})
#define PAIR(type, f, a, b) ((type){f((a).low, (b).low), f((a).high, (b).high)})

static inline __m256i first_lanes(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline f32 f32_zero(void) { return BOTH(f32, _mm256_setzero_ps); }
static inline f32 f32_set(float a) { return BOTH(f32, _mm256_set1_ps, a); }
static inline f32 f32_load(const float *p) { return (f32){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }

static inline void f32_store(float *p, f32 v)
{
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
}

static inline f32 f32_load_first(const float *p, int n)
{
    return (f32){_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}

static inline void f32_store_first(float *p, f32 v, int n)
{
    _mm256_maskstore_ps(p, first_lanes(n), v.low);
    _mm256_maskstore_ps(p + 8, first_lanes(n - 8), v.high);
}

static inline f32 f32_first(int n, f32 a, f32 b)
{
    return (f32){_mm256_blendv_ps(b.low, a.low, _mm256_castsi256_ps(first_lanes(n))),
                 _mm256_blendv_ps(b.high, a.high, _mm256_castsi256_ps(first_lanes(n - 8)))};
}

static inline f32 f32_add(f32 a, f32 b) { return PAIR(f32, _mm256_add_ps, a, b); }
static inline f32 f32_sub(f32 a, f32 b) { return PAIR(f32, _mm256_sub_ps, a, b); }
static inline f32 f32_mul(f32 a, f32 b) { return PAIR(f32, _mm256_mul_ps, a, b); }
static inline f32 f32_div(f32 a, f32 b) { return PAIR(f32, _mm256_div_ps, a, b); }
static inline f32 f32_max(f32 a, f32 b) { return PAIR(f32, _mm256_max_ps, a, b); }
static inline f32 f32_min(f32 a, f32 b) { return PAIR(f32, _mm256_min_ps, a, b); }

static inline f32 f32_where_less(f32 a, f32 b, f32 yes, f32 no)
{
    return (f32){_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
                 _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}

static inline f32 f32_fma(f32 a, f32 b, f32 c)
{
    return (f32){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

static inline f32 f32_neg_fma(f32 a, f32 b, f32 c)
{
    return (f32){_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}

static inline __m128i load_8_bytes(const void *p) { return _mm_loadl_epi64((const __m128i *)p); }
static inline __m128i load_16_bytes(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
static inline f32 f32_of_i32(i32 a) { return (f32){_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }

static inline f32 f32_of_i8(const int8_t *p)
{
    return f32_of_i32((i32){_mm256_cvtepi8_epi32(load_8_bytes(p)), _mm256_cvtepi8_epi32(load_8_bytes(p + 8))});
}

static inline f32 f32_of_half(const uint16_t *p)
{
    return (f32){_mm256_cvtph_ps(load_16_bytes(p)), _mm256_cvtph_ps(load_16_bytes(p + 8))};
}

static inline f32 f32_of_bfloat(const uint16_t *p)
{
    return (f32){_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16_bytes(p)), 16)),
                 _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16_bytes(p + 8)), 16))};
}

static inline void half_store(uint16_t *p, f32 v)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(v.high, _MM_FROUND_TO_NEAREST_INT));
}

static inline i32 i32_bits(f32 a) { return (i32){_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
static inline f32 f32_bits(i32 a) { return (f32){_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }
static inline i32 i32_zero(void) { return BOTH(i32, _mm256_setzero_si256); }
static inline i32 i32_set(int32_t a) { return BOTH(i32, _mm256_set1_epi32, a); }
static inline i32 i32_add(i32 a, i32 b) { return PAIR(i32, _mm256_add_epi32, a, b); }
static inline i32 i32_and(i32 a, i32 b) { return PAIR(i32, _mm256_and_si256, a, b); }
static inline i32 i32_or(i32 a, i32 b) { return PAIR(i32, _mm256_or_si256, a, b); }
static inline i32 i32_max(i32 a, i32 b) { return PAIR(i32, _mm256_max_epi32, a, b); }

static inline i32 i32_shl(i32 a, int n)
{
    __m128i count = _mm_cvtsi32_si128(n);
    return (i32){_mm256_sll_epi32(a.low, count), _mm256_sll_epi32(a.high, count)};
}

static inline i32 i32_shr(i32 a, int n)
{
    __m128i count = _mm_cvtsi32_si128(n);
    return (i32){_mm256_srl_epi32(a.low, count), _mm256_srl_epi32(a.high, count)};
}

static inline i32 i32_of_u8(const uint8_t *p)
{
    return (i32){_mm256_cvtepu8_epi32(load_8_bytes(p)), _mm256_cvtepu8_epi32(load_8_bytes(p + 8))};
}

static inline i32 i32_of_u16(const uint16_t *p)
{
    return (i32){_mm256_cvtepu16_epi32(load_16_bytes(p)), _mm256_cvtepu16_epi32(load_16_bytes(p + 8))};
}

static inline int32_t i32_max_lane(i32 a)
{
    __m256i eight = _mm256_max_epi32(a.low, a.high);
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

static inline int32_t i32_sum_lanes(i32 a)
{
    __m256i eight = _mm256_add_epi32(a.low, a.high);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

static inline void i8_store(int8_t *p, i32 a)
{
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

static inline __m256i load_32_bytes(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline i32 i32_load(const void *p) { return (i32){load_32_bytes(p), load_32_bytes((const char *)p + 32)}; }
static inline u8 u8_load(const void *p) { return (u8){load_32_bytes(p), load_32_bytes((const char *)p + 32)}; }
static inline u8 u8_or(u8 a, u8 b) { return PAIR(u8, _mm256_or_si256, a, b); }

static inline void u8_store(void *p, u8 a)
{
    _mm256_storeu_si256((__m256i *)p, a.low);
    _mm256_storeu_si256((__m256i *)p + 1, a.high);
}

static inline u8 u8_add(u8 a, int n)
{
    __m256i addend = _mm256_set1_epi8((char)n);
    return (u8){_mm256_add_epi8(a.low, addend), _mm256_add_epi8(a.high, addend)};
}

static inline u8 u8_table(const uint8_t *p) { return BOTH(u8, _mm256_broadcastsi128_si256, load_16_bytes(p)); }
static inline u8 u8_lookup(u8 table, u8 a) { return PAIR(u8, _mm256_shuffle_epi8, table, a); }

static inline u8 u8_and(u8 a, int mask)
{
    __m256i masks = _mm256_set1_epi8((char)mask);
    return (u8){_mm256_and_si256(a.low, masks), _mm256_and_si256(a.high, masks)};
}

static inline u8 u8_shl(u8 a, int n)
{
    __m128i count = _mm_cvtsi32_si128(n);
    return (u8){_mm256_sll_epi16(a.low, count), _mm256_sll_epi16(a.high, count)};
}

static inline u8 u8_shr(u8 a, int n)
{
    __m128i count = _mm_cvtsi32_si128(n);
    return (u8){_mm256_srl_epi16(a.low, count), _mm256_srl_epi16(a.high, count)};
}

#ifdef LANES_VNNI
#include "lanes/avx2_vnni.h"
#else
#include "lanes/avx2_dots.h"
#endif

/* The trees of lanes/common.h in registers, the same sums in the same order. */
#define LANES_HAVE_TREES

static inline float f32_sum_lanes(f32 v)
{
    __m256 eight = _mm256_add_ps(v.low, v.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline float f32_max_lane(f32 v)
{
    __m256 eight = _mm256_max_ps(v.low, v.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#include "lanes/common.h"

#endif
