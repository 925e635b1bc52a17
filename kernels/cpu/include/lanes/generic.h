/* Sixteen lanes in portable C: the vocabulary that kernels are written in, and the definition of what each word means.
 *
 * f32 is 16 float32, i32 is 16 int32, u8 is 64 bytes of which lane r owns bytes 4r..4r+3. Every float operation rounds once, to
 * nearest even; f32_fma is fused. lanes/avx2.h, lanes/avx512.h and lanes/neon.h mean the same, bit for bit.
 */
#ifndef OLLAMA_LANES_H
#define OLLAMA_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "formats/half.h"

enum { LANES = 16 };
#define TILE_COLUMNS 1              /* columns of a panel: as many as have accumulators in registers */
#define TILE_SIZES(size) size(1)    /* of tiles that a panel is cut into */
#define ACCUMULATORS 1          /* f32 that attention sums up in registers */
#define UNROLL

typedef struct { float lane[LANES]; } f32;
typedef struct { int32_t lane[LANES]; } i32;
typedef struct { uint8_t byte[4 * LANES]; } u8;

#define EACH_LANE for (int l = 0; l < LANES; l++)

static inline f32 f32_zero(void) { return (f32){{0}}; }
static inline f32 f32_set(float a) { f32 v; EACH_LANE v.lane[l] = a; return v; }
static inline f32 f32_load(const float *p) { f32 v; memcpy(&v, p, sizeof v); return v; }
static inline void f32_store(float *p, f32 v) { memcpy(p, &v, sizeof v); }

/* The first n lanes from memory, zeros behind; and back. n may be 0. */
static inline f32 f32_load_first(const float *p, int n) { f32 v = f32_zero(); memcpy(&v, p, n * sizeof *p); return v; }
static inline void f32_store_first(float *p, f32 v, int n) { memcpy(p, &v, n * sizeof *p); }

/* Lane l of a where l < n, of b elsewhere. */
static inline f32 f32_first(int n, f32 a, f32 b) { EACH_LANE if (l >= n) a.lane[l] = b.lane[l]; return a; }

static inline f32 f32_add(f32 a, f32 b) { EACH_LANE a.lane[l] += b.lane[l]; return a; }
static inline f32 f32_sub(f32 a, f32 b) { EACH_LANE a.lane[l] -= b.lane[l]; return a; }
static inline f32 f32_mul(f32 a, f32 b) { EACH_LANE a.lane[l] *= b.lane[l]; return a; }
static inline f32 f32_div(f32 a, f32 b) { EACH_LANE a.lane[l] /= b.lane[l]; return a; }
static inline f32 f32_fma(f32 a, f32 b, f32 c) { EACH_LANE c.lane[l] = fmaf(a.lane[l], b.lane[l], c.lane[l]); return c; }
static inline f32 f32_neg_fma(f32 a, f32 b, f32 c) { EACH_LANE c.lane[l] = fmaf(-a.lane[l], b.lane[l], c.lane[l]); return c; }

/* b where a is not greater, so a NaN in b stays. */
static inline f32 f32_max(f32 a, f32 b) { EACH_LANE a.lane[l] = a.lane[l] > b.lane[l] ? a.lane[l] : b.lane[l]; return a; }
static inline f32 f32_min(f32 a, f32 b) { EACH_LANE a.lane[l] = a.lane[l] < b.lane[l] ? a.lane[l] : b.lane[l]; return a; }

/* yes where a is less than b, no elsewhere, so where one is a NaN. */
static inline f32 f32_where_less(f32 a, f32 b, f32 yes, f32 no) { EACH_LANE if (a.lane[l] < b.lane[l]) no.lane[l] = yes.lane[l]; return no; }

static inline f32 f32_of_i32(i32 a) { f32 v; EACH_LANE v.lane[l] = (float)a.lane[l]; return v; }
static inline f32 f32_of_i8(const int8_t *p) { f32 v; EACH_LANE v.lane[l] = p[l]; return v; }
static inline f32 f32_of_half(const uint16_t *p) { f32 v; EACH_LANE v.lane[l] = float_of_half(p[l]); return v; }
static inline f32 f32_of_bfloat(const uint16_t *p) { f32 v; EACH_LANE v.lane[l] = float_of_bfloat(p[l]); return v; }
static inline void half_store(uint16_t *p, f32 v) { EACH_LANE p[l] = half_of_float(v.lane[l]); }

/* The float whose bits are those of a, and 2^n as n + 127 in the exponent. */
static inline i32 i32_bits(f32 a) { i32 v; memcpy(&v, &a, sizeof v); return v; }
static inline f32 f32_bits(i32 a) { f32 v; memcpy(&v, &a, sizeof v); return v; }

static inline i32 i32_zero(void) { return (i32){{0}}; }
static inline i32 i32_set(int32_t a) { i32 v; EACH_LANE v.lane[l] = a; return v; }
static inline i32 i32_load(const void *p) { i32 v; memcpy(&v, p, sizeof v); return v; }
static inline i32 i32_of_u8(const uint8_t *p) { i32 v; EACH_LANE v.lane[l] = p[l]; return v; }
static inline i32 i32_of_u16(const uint16_t *p) { i32 v; EACH_LANE v.lane[l] = p[l]; return v; }
static inline i32 i32_add(i32 a, i32 b) { EACH_LANE a.lane[l] = (int32_t)((uint32_t)a.lane[l] + (uint32_t)b.lane[l]); return a; }
static inline i32 i32_and(i32 a, i32 b) { EACH_LANE a.lane[l] &= b.lane[l]; return a; }
static inline i32 i32_or(i32 a, i32 b) { EACH_LANE a.lane[l] |= b.lane[l]; return a; }
static inline i32 i32_max(i32 a, i32 b) { EACH_LANE a.lane[l] = a.lane[l] > b.lane[l] ? a.lane[l] : b.lane[l]; return a; }
static inline i32 i32_shl(i32 a, int n) { EACH_LANE a.lane[l] = (int32_t)((uint32_t)a.lane[l] << n); return a; }
static inline i32 i32_shr(i32 a, int n) { EACH_LANE a.lane[l] = (int32_t)((uint32_t)a.lane[l] >> n); return a; }   /* zeros in */
static inline int32_t i32_max_lane(i32 a) { int32_t v = a.lane[0]; EACH_LANE if (a.lane[l] > v) v = a.lane[l]; return v; }
static inline int32_t i32_sum_lanes(i32 a) { int32_t v = 0; EACH_LANE v += a.lane[l]; return v; }

/* To the low bytes, for values in -128..127. */
static inline void i8_store(int8_t *p, i32 a) { EACH_LANE p[l] = (int8_t)a.lane[l]; }

static inline u8 u8_load(const void *p) { u8 v; memcpy(&v, p, sizeof v); return v; }
static inline u8 u8_and(u8 a, int mask) { for (int i = 0; i < 4 * LANES; i++) a.byte[i] &= mask; return a; }
static inline u8 u8_or(u8 a, u8 b) { for (int i = 0; i < 4 * LANES; i++) a.byte[i] |= b.byte[i]; return a; }
static inline void u8_store(void *p, u8 a) { memcpy(p, &a, sizeof a); }

/* Sums of bytes, modulo 256. */
static inline u8 u8_add(u8 a, int n) { for (int i = 0; i < 4 * LANES; i++) a.byte[i] = (uint8_t)(a.byte[i] + n); return a; }

/* A table of 16 bytes, and what stands in it at the index that each byte is, 0..15. */
static inline u8 u8_table(const uint8_t *p) { u8 v; for (int i = 0; i < 4 * LANES; i++) v.byte[i] = p[i % 16]; return v; }
static inline u8 u8_lookup(u8 table, u8 a) { for (int i = 0; i < 4 * LANES; i++) a.byte[i] = table.byte[a.byte[i]]; return a; }

/* Shifts of bytes; on other instruction sets bits of a neighbouring byte come in, so the result is always masked. */
static inline u8 u8_shl(u8 a, int n) { for (int i = 0; i < 4 * LANES; i++) a.byte[i] = (uint8_t)(a.byte[i] << n); return a; }
static inline u8 u8_shr(u8 a, int n) { for (int i = 0; i < 4 * LANES; i++) a.byte[i] >>= n; return a; }

/* acc + the 4 bytes of each lane times the same 4 signed bytes x. i32_dot: w <= 127. */
static inline i32 i32_dot(i32 acc, u8 w, const int8_t *x)
{
    EACH_LANE for (int t = 0; t < 4; t++) acc.lane[l] += w.byte[4 * l + t] * x[t];
    return acc;
}

/* The same for 4 vectors and 16 x. w <= 32. */
static inline i32 i32_dot4(i32 acc, const u8 *w, const int8_t *x)
{
    for (int i = 0; i < 4; i++) acc = i32_dot(acc, w[i], x + 4 * i);
    return acc;
}

/* acc + the lane's byte of scale times the same sum, all of it below 2^31. */
static inline i32 i32_dot4_scaled(i32 acc, const u8 *w, const int8_t *x, const uint8_t *scale)
{
    i32 sum = i32_dot4(i32_zero(), w, x);
    EACH_LANE acc.lane[l] += scale[l] * sum.lane[l];
    return acc;
}

/* acc + the same as i32_dot for w stored with 128 added; the sum starts at i32_start128. */
static inline i32 i32_start128(const int32_t *start) { return i32_set(*start); }
static inline i32 i32_dot128(i32 acc, u8 w, const int8_t *x) { return i32_dot(acc, w, x); }

/* The same for w out of such a table, w >= 1: what stands for -128 is not among them. */
static inline u8 u8_table127(const uint8_t *p) { return u8_table(p); }
static inline i32 i32_dot127(i32 acc, u8 w, const int8_t *x) { return i32_dot(acc, w, x); }

/* acc + pairs of unsigned bytes (bytes 2l, 2l + 1 of p) times the same pair of 16-bit x. */
static inline i32 i32_dot_pairs(i32 acc, const uint8_t *p, const int16_t *x)
{
    EACH_LANE acc.lane[l] += p[2 * l] * x[0] + p[2 * l + 1] * x[1];
    return acc;
}

#include "lanes/common.h"

#endif
