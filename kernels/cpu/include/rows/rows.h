/* Ops that work on one row at a time, in lanes. Contracts: ollama_zmq/ops/rms_norm.py, layer_norm.py, silu_mul.py, rope.py, route.py,
 * expert_sum.py. */
#ifndef OLLAMA_ROWS_H
#define OLLAMA_ROWS_H

/* The sum of squares stands in 16 lanes, lane l adding x[l], x[l + 16] ...; one lane alone would be too coarse at D = 8192. */
static void rms_norm(
    const float *x,         /* in  [D] */
    const float *weight,    /* in  [D] */
    float *out,             /* out [D], may be x */
    size_t D,
    float eps)
{
    f32 squares = f32_zero();
    size_t d = 0;
    for (; d + 16 <= D; d += 16) squares = f32_fma(f32_load(x + d), f32_load(x + d), squares);
    f32 last = f32_load_first(x + d, (int)(D - d));
    squares = f32_fma(last, last, squares);
    f32 scale = f32_set(1.0f / sqrtf(f32_sum_lanes(squares) / (float)D + eps));
    for (d = 0; d + 16 <= D; d += 16) f32_store(out + d, f32_mul(f32_mul(f32_load(x + d), scale), f32_load(weight + d)));
    f32_store_first(out + d, f32_mul(f32_mul(last, scale), f32_load_first(weight + d, (int)(D - d))), (int)(D - d));
}

/* x - mean, 0 in the lanes from n on. */
static inline f32 centred(const float *x, f32 mean, int n)
{
    return f32_first(n, f32_sub(f32_load_first(x, n), mean), f32_zero());
}

/* Sums stand in 16 lanes as those of rms_norm; the variance is taken of what is left when the mean is known. */
static void layer_norm(
    const float *x,         /* in  [D] */
    const float *weight,    /* in  [D] */
    float *out,             /* out [D], may be x */
    size_t D,
    float eps)
{
    f32 sum = f32_zero(), squares = f32_zero();
    for (size_t d = 0; d < D; d += 16) sum = f32_add(sum, f32_load_first(x + d, D - d < 16 ? (int)(D - d) : 16));
    f32 mean = f32_set(f32_sum_lanes(sum) / (float)D);
    for (size_t d = 0; d < D; d += 16) {
        f32 c = centred(x + d, mean, D - d < 16 ? (int)(D - d) : 16);
        squares = f32_fma(c, c, squares);
    }
    f32 scale = f32_set(1.0f / sqrtf(f32_sum_lanes(squares) / (float)D + eps));
    for (size_t d = 0; d < D; d += 16) {
        int n = D - d < 16 ? (int)(D - d) : 16;
        f32_store_first(out + d, f32_mul(f32_mul(centred(x + d, mean, n), scale), f32_load_first(weight + d, n)), n);
    }
}

static inline f32 silu_times(f32 gate, f32 up)
{
    f32 below = f32_add(f32_set(1.0f), f32_exp(f32_sub(f32_zero(), gate)));
    return f32_mul(f32_div(gate, below), up);
}

static void silu_mul(
    const float *gate,      /* in  [F] */
    const float *up,        /* in  [F] */
    float *out,             /* out [F], may be gate or up */
    size_t F)
{
    size_t f = 0;
    for (; f + 16 <= F; f += 16) f32_store(out + f, silu_times(f32_load(gate + f), f32_load(up + f)));
    int n = (int)(F - f);
    f32_store_first(out + f, silu_times(f32_load_first(gate + f, n), f32_load_first(up + f, n)), n);
}

/* Turn pairs of every head by the angles of one position. Each product of the second term is rounded, then fused with the first. */
static void rope(
    const float *x,         /* in  [n_heads, head_dim] */
    const float *cos_sin,   /* in  [2, rotary_dim / 2] */
    float *out,             /* out [n_heads, head_dim], may be x */
    size_t n_heads,
    size_t head_dim,
    size_t rotary_dim,
    int halves)
{
    size_t pairs = rotary_dim / 2, to_first = halves ? 1 : 2, to_second = halves ? pairs : 1;
    const float *cosine = cos_sin, *sine = cos_sin + pairs;
    for (size_t h = 0; h < n_heads; h++, x += head_dim, out += head_dim) {
        for (size_t i = 0; i < pairs; i++) {
            float a = x[i * to_first], b = x[i * to_first + to_second];
            out[i * to_first] = fmaf(a, cosine[i], -(b * sine[i]));
            out[i * to_first + to_second] = fmaf(a, sine[i], b * cosine[i]);
        }
        if (out != x) memcpy(out + rotary_dim, x + rotary_dim, (head_dim - rotary_dim) * sizeof *x);
    }
}

/* The n_used largest logits, the lowest number among equals; NaNs come last. Chosen ones become 1, others 0. */
static inline void choose(const float *logits, float *chosen, size_t n_experts, size_t n_used)
{
    memset(chosen, 0, n_experts * sizeof *chosen);
    for (size_t j = 0; j < n_used; j++) {
        size_t best = n_experts;
        for (size_t e = 0; e < n_experts; e++)
            if (!chosen[e] && (best == n_experts || logits[e] > logits[best] || (isnan(logits[best]) && !isnan(logits[e])))) best = e;
        chosen[best] = 1;
    }
}

/* exp(logits - peak) of up to 16 experts, 0 behind. */
static inline f32 expert_shares(const float *logits, float peak, int n)
{
    return f32_first(n, f32_exp(f32_sub(f32_load_first(logits, n), f32_set(peak))), f32_zero());
}

/* Both sums stand in 16 lanes; a NaN among all shares becomes one of the total, whichever share it is. */
static void route(
    const float *logits,    /* in  [n_experts] */
    float *routing,         /* out [n_experts] */
    size_t n_experts,
    size_t n_used,
    int over_all)
{
    float peak = logits[0];
    f32 all = f32_zero(), some = f32_zero();
    choose(logits, routing, n_experts, n_used);
    for (size_t e = 1; e < n_experts; e++) peak = logits[e] > peak ? logits[e] : peak;
    for (size_t e = 0; e < n_experts; e += 16) {
        int n = n_experts - e < 16 ? (int)(n_experts - e) : 16;
        f32 share = expert_shares(logits + e, peak, n);
        float lane[LANES];
        f32_store(lane, share);
        for (int i = 0; i < n; i++) routing[e + i] = routing[e + i] ? lane[i] : 0;
        all = f32_add(all, share);
        some = f32_add(some, f32_load_first(routing + e, n));
    }
    float sum = f32_sum_lanes(all), total = over_all ? sum : f32_sum_lanes(some) + 0.0f * sum;
    for (size_t e = 0; e < n_experts; e++) routing[e] = routing[e] ? routing[e] / total : 0;
}

static void expert_sum(
    const float *x,         /* in  [n_used, D] */
    const float *routing,   /* in  [n_experts] */
    const int32_t *experts, /* in  [n_used] */
    float *out,             /* out [D] */
    size_t n_used,
    size_t D)
{
    for (size_t d = 0; d < D; d += 16) {
        int n = D - d < 16 ? (int)(D - d) : 16;
        f32 total = f32_zero();
        for (size_t j = 0; j < n_used; j++) total = f32_fma(f32_set(routing[experts[j]]), f32_load_first(x + j * D + d, n), total);
        f32_store_first(out + d, total, n);
    }
}

#endif
