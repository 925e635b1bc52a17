/* One head's keys or values into their slot of a page (page.h). Contract: ollama_zmq/ops/store_kv.py. */
#ifndef OLLAMA_STORE_H
#define OLLAMA_STORE_H

#include "attention/page.h"
#include "linear/quantize.h"

static void store_keys_f16(const float *k, char *keys, size_t slot, size_t head_dim)
{
    uint16_t halves[16], *out = (uint16_t *)keys + slot;
    for (size_t e = 0; e < head_dim; e += 16) {
        size_t n = head_dim - e < 16 ? head_dim - e : 16;
        half_store(halves, f32_load_first(k + e, (int)n));
        for (size_t i = 0; i < n; i++) out[(e + i) * PAGE_SLOTS] = halves[i];
    }
}

static void store_values_f16(const float *v, char *values, size_t slot, size_t value_dim)
{
    size_t padded = padded16(value_dim);
    for (size_t e = 0; e < value_dim; e += 16) {
        uint16_t *strip = (uint16_t *)values + e / STRIP * STRIP * PAGE_SLOTS;
        uint16_t *out = strip + slot * strip_width(e, padded) + e % STRIP;
        half_store(out, f32_load_first(v + e, value_dim - e < 16 ? (int)(value_dim - e) : 16));
    }
}

/* Up to 32 values as q = round(x * (127 / max|x|)), zeros behind; returns the scale max|x| / 127 as float16. */
static inline uint16_t quantize_block(const float *x, size_t n, int8_t *q)
{
    f32 low = f32_load_first(x, n < 16 ? (int)n : 16), high = n > 16 ? f32_load_first(x + 16, n < 32 ? (int)n - 16 : 16) : f32_zero();
    float largest = float_of_bits((uint32_t)i32_max_lane(magnitude_bits(magnitude_bits(i32_zero(), low), high)));
    f32 inverse = f32_set(inverse_scale(largest));
    quantize_16(if_finite(largest, low), inverse, q);
    quantize_16(if_finite(largest, high), inverse, q + 16);
    return half_of_float(largest / 127.0f);
}

static void store_keys_q8_0(const float *k, char *keys, size_t slot, size_t head_dim)
{
    int8_t q[32];
    for (size_t e = 0; e < head_dim; e += 32, keys += Q8_BLOCK_NBYTES) {
        ((uint16_t *)(keys + Q8_KEYS_NBYTES))[slot] = quantize_block(k + e, head_dim - e, q);
        for (size_t i = 0; i < 32; i++) keys[i / 4 * 4 * PAGE_SLOTS + slot * 4 + i % 4] = (char)(q[i] + 128);
    }
}

static void store_values_q8_0(const float *v, char *values, size_t slot, size_t value_dim)
{
    size_t padded = padded32(value_dim);
    for (size_t e = 0; e < value_dim; e += 32) {
        size_t width = strip_width(e, padded), block = e % STRIP / 32;
        char *strip = values + e / STRIP * STRIP / 32 * Q8_BLOCK_NBYTES, *bytes = strip + width / 32 * 2 * PAGE_SLOTS;
        ((uint16_t *)strip)[block * PAGE_SLOTS + slot] = quantize_block(v + e, value_dim - e, (int8_t *)bytes + slot * width + block * 32);
    }
}

#endif
