/* Dot products of bytes with AVX-VNNI, where one instruction adds four products to 32 bits. Included by lanes/avx2.h. */
#ifndef OLLAMA_LANES_AVX2_VNNI_H
#define OLLAMA_LANES_AVX2_VNNI_H

#ifdef LANES_EVEX       /* a test's choice: the same instructions as AVX-512 encodes them */
#define DOT_BYTES _mm256_dpbusd_epi32
#define DOT_PAIRS _mm256_dpwssd_epi32
#else
#define DOT_BYTES _mm256_dpbusd_avx_epi32
#define DOT_PAIRS _mm256_dpwssd_avx_epi32
#endif

static inline i32 i32_dot(i32 acc, u8 w, const int8_t *x)
{
    __m256i four = _mm256_set1_epi32(*(const any_i32 *)x);
    return (i32){DOT_BYTES(acc.low, w.low, four), DOT_BYTES(acc.high, w.high, four)};
}

static inline i32 i32_dot4(i32 acc, const u8 *w, const int8_t *x)
{
    return i32_dot(i32_dot(i32_dot(i32_dot(acc, w[0], x), w[1], x + 4), w[2], x + 8), w[3], x + 12);
}

static inline i32 i32_dot4_scaled(i32 acc, const u8 *w, const int8_t *x, const uint8_t *scale)
{
    return i32_add(acc, PAIR(i32, _mm256_mullo_epi32, i32_dot4(i32_zero(), w, x), i32_of_u8(scale)));
}

static inline i32 i32_start128(const int32_t *start) { return i32_set(*start); }
static inline i32 i32_dot128(i32 acc, u8 w, const int8_t *x) { return i32_dot(acc, w, x); }
static inline u8 u8_table127(const uint8_t *p) { return u8_table(p); }
static inline i32 i32_dot127(i32 acc, u8 w, const int8_t *x) { return i32_dot(acc, w, x); }

static inline i32 i32_dot_pairs(i32 acc, const uint8_t *p, const int16_t *x)
{
    __m256i two = _mm256_set1_epi32(*(const any_i32 *)x);
    return (i32){DOT_PAIRS(acc.low, _mm256_cvtepu8_epi16(load_16_bytes(p)), two),
                 DOT_PAIRS(acc.high, _mm256_cvtepu8_epi16(load_16_bytes(p + 16)), two)};
}

#endif
