/* Dot products of bytes on AVX2, by products of pairs that saturate at 16 bits. Included by lanes/avx2.h. */
#ifndef OLLAMA_LANES_AVX2_DOTS_H
#define OLLAMA_LANES_AVX2_DOTS_H

static inline __m256i dot_bytes(__m256i acc, __m256i unsigned_bytes, __m256i signed_bytes)
{
    __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

static inline i32 i32_dot(i32 acc, u8 w, const int8_t *x)
{
    __m256i four = _mm256_set1_epi32(*(const any_i32 *)x);
    return (i32){dot_bytes(acc.low, w.low, four), dot_bytes(acc.high, w.high, four)};
}

/* Sums of 4 vectors fit 16 bits, so they are widened once; what widens may as well scale. */
static inline __m256i dot_bytes4(__m256i a, __m256i b, __m256i c, __m256i d, const int8_t *x)
{
    const any_i32 *four = (const any_i32 *)x;
    __m256i pairs = _mm256_maddubs_epi16(a, _mm256_set1_epi32(four[0]));
    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(b, _mm256_set1_epi32(four[1])));
    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(c, _mm256_set1_epi32(four[2])));
    return _mm256_add_epi16(pairs, _mm256_maddubs_epi16(d, _mm256_set1_epi32(four[3])));
}

/* acc + the pairs of i32_dot4 times the pairs of scale. */
static inline i32 dot4_scaled(i32 acc, const u8 *w, const int8_t *x, i32 scale)
{
    __m256i low = dot_bytes4(w[0].low, w[1].low, w[2].low, w[3].low, x);
    __m256i high = dot_bytes4(w[0].high, w[1].high, w[2].high, w[3].high, x);
    return (i32){_mm256_add_epi32(acc.low, _mm256_madd_epi16(low, scale.low)),
                 _mm256_add_epi32(acc.high, _mm256_madd_epi16(high, scale.high))};
}

static inline i32 i32_dot4(i32 acc, const u8 *w, const int8_t *x)
{
    return dot4_scaled(acc, w, x, BOTH(i32, _mm256_set1_epi16, 1));
}

static inline i32 i32_dot4_scaled(i32 acc, const u8 *w, const int8_t *x, const uint8_t *scale)
{
    __m256i both = _mm256_broadcastsi128_si256(load_16_bytes(scale));
    __m256i first = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1,
                                     4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1);
    __m256i second = _mm256_add_epi8(first, _mm256_set1_epi16(8));
    return dot4_scaled(acc, w, x, (i32){_mm256_shuffle_epi8(both, first), _mm256_shuffle_epi8(both, second)});
}

/* VPMADDUBSW saturates at 255 * 127 * 2, so the offset comes off first and the sign goes over to x: |w| * sign(w) x. */
static inline i32 i32_start128(const int32_t *start) { (void)start; return i32_zero(); }

static inline __m256i dot_signed(__m256i acc, __m256i w, __m256i x)
{
    w = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
    return dot_bytes(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

static inline i32 i32_dot128(i32 acc, u8 w, const int8_t *x)
{
    __m256i four = _mm256_set1_epi32(*(const any_i32 *)x);
    return (i32){dot_signed(acc.low, w.low, four), dot_signed(acc.high, w.high, four)};
}

/* A table without -128 gives signed numbers at once, and the sign goes over to them: |x| * sign(x) w. */
static inline u8 u8_table127(const uint8_t *p)
{
    return BOTH(u8, _mm256_broadcastsi128_si256, _mm_xor_si128(load_16_bytes(p), _mm_set1_epi8((char)0x80)));
}

static inline i32 i32_dot127(i32 acc, u8 w, const int8_t *x)
{
    __m256i four = _mm256_set1_epi32(*(const any_i32 *)x), size = _mm256_abs_epi8(four);
    return (i32){dot_bytes(acc.low, size, _mm256_sign_epi8(w.low, four)), dot_bytes(acc.high, size, _mm256_sign_epi8(w.high, four))};
}

static inline i32 i32_dot_pairs(i32 acc, const uint8_t *p, const int16_t *x)
{
    __m256i two = _mm256_set1_epi32(*(const any_i32 *)x);
    __m256i low = _mm256_cvtepu8_epi16(load_16_bytes(p)), high = _mm256_cvtepu8_epi16(load_16_bytes(p + 16));
    return (i32){_mm256_add_epi32(acc.low, _mm256_madd_epi16(low, two)), _mm256_add_epi32(acc.high, _mm256_madd_epi16(high, two))};
}

#endif
