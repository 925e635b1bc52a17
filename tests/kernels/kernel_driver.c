/* Runs every kernel of one instruction set on the same drawn numbers and prints a digest of each result.
 *
 *   kernel_driver [ISA]      lines "what  sizes  digest" of the fastest table if none is named; status 1 when this CPU has no such table
 *
 * Two programs that print the same lines compute the same bits, whatever CPU they ran on. Every buffer is an allocation of its own of
 * just the size that is promised to the kernel, so that AddressSanitizer sees a value too many. Numbers are made of integers: drawing
 * them rounds nowhere. A NaN counts as a NaN: its sign differs between CPUs.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/page.h"
#include "isa.h"
#include "packing/pack.h"
#include "packing/unpack.h"
#include "rows/angles.h"
#include "runtime/experts.h"

static const struct kernels *k;
static uint64_t state;

static uint32_t draw(void)      /* xorshift64*: Vigna 2016 */
{
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (uint32_t)(state * 2685821657736338717u >> 32);
}

/* In -1..1, every seventh 64 times as large, as hidden states have them. */
static float draw_float(size_t i)
{
    return (float)((int32_t)draw() >> 8) * (i % 7 ? 0x1p-23f : 0x1p-17f);
}

static void *buffer(size_t nbytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, nbytes ? nbytes : 1)) abort();
    memset(memory, 0x5a, nbytes);
    return memory;
}

static float *floats(size_t count)
{
    float *values = buffer(count * sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = draw_float(i);
    return values;
}

static uint64_t mixed(uint64_t digest, uint32_t value)     /* FNV-1a, a word at a time */
{
    return (digest ^ value) * 1099511628211u;
}

static uint64_t digest_of(const float *values, size_t count)
{
    uint64_t digest = 14695981039346656037u;
    for (size_t i = 0; i < count; i++) digest = mixed(digest, isnan(values[i]) ? 0x7fc00000u : bits_of_float(values[i]));
    return digest;
}

static uint64_t digest_of_bytes(const char *bytes, size_t count)
{
    uint64_t digest = 14695981039346656037u;
    for (size_t i = 0; i < count; i++) digest = mixed(digest, (uint8_t)bytes[i]);
    return digest;
}

static void report(const char *what, size_t a, size_t b, size_t c, uint64_t digest)
{
    printf("%-12s %5zu %5zu %5zu  %016llx\n", what, a, b, c, (unsigned long long)digest);
}

/* A weight [N, K] as a file has it. Of blocks any byte is drawn but those that would make a scale of 2^13 or more. */
static uint8_t *draw_file(enum format format, size_t N, size_t K)
{
    size_t nbytes = N * row_nbytes(format, K);
    uint8_t *file = buffer(nbytes);
    for (size_t i = 0; i < nbytes; i++) {
        file[i] = (uint8_t)draw();
        if ((file[i] & 0x70) == 0x70) file[i] &= 0xdf;
    }
    for (size_t i = 0; format_infos[format].block_size == 1 && i < N * K; i++) {
        float value = draw_float(i);
        uint16_t half = format == F16 ? half_of_float(value) : (uint16_t)(bits_of_float(value) >> 16);
        memcpy(file + i * format_infos[format].block_nbytes, format == F32 ? (void *)&value : (void *)&half, row_nbytes(format, 1));
    }
    return file;
}

static void run_linear(enum format format, const void *weight, size_t T, size_t N, size_t K)
{
    enum activation kind = format_infos[format].x;
    float *x = floats(T * K), *out = buffer(T * N * sizeof *out);
    char *panels = buffer(T * activation_nbytes(kind, K));
    for (size_t t = 0; t < T; t++) k->pack_activation(kind, x + t * K, K, column_of(t, T, k->panel_columns), panels);
    struct linear_job job = {weight, panels, out, K, N, T};
    k->linear[format](&job, 0, 1);
    k->linear[format](&job, 1, groups_of(N));
    report("linear", (size_t)format_infos[format].ggml_id, T, K, digest_of(out, T * N));
    free(x), free(out), free(panels);
}

static void run_format(enum format format)
{
    static const size_t tokens[] = {1, 2, 3, 4, 5, 13};
    size_t N = 41, block = format_infos[format].block_size, K = block == 1 ? 57 : block * (block < 256 ? 3 : 2);
    uint8_t *file = draw_file(format, N, K), *packed = buffer(groups_of(N) * 16 * row_nbytes(format, K));
    for (size_t g = 0; g < groups_of(N); g++) pack_group(format, file, N, K, g, packed);
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) run_linear(format, packed, tokens[i], N, K);
    float *rows = buffer(N * K * sizeof *rows);
    for (size_t n = 0; n < N; n++) unpack_row(format, packed, K, n, rows + n * K);
    report("embed", (size_t)format_infos[format].ggml_id, N, K, digest_of(rows, N * K));
    free(file), free(packed), free(rows);
}

/* Rows so wide, and so many tokens, that K is cut into segments, the last of them short; the last group has one row. */
static void run_wide(enum format format)
{
    size_t N = 17, K = 4864, nbytes = groups_of(N) * 16 * row_nbytes(format, K);
    uint8_t *file = draw_file(format, N, K), *packed = buffer(nbytes);
    for (size_t g = 0; g < groups_of(N); g++) pack_group(format, file, N, K, g, packed);
    run_linear(format, packed, 64, N, K);
    run_linear(format, packed, 1, N, K);
    free(file), free(packed);
}

/* Every plain op (rows/table.h), with vectors of the row, of a head, and without where it need not have one; each of its words. */
static void run_plain(enum row_kind kind, const float *x, const float *y, size_t D, size_t E, double number)
{
    float *gate = buffer(D / E * sizeof *gate), *out = buffer(D * sizeof *out);
    int words = kind == ROW_activation || kind == ROW_gated ? ACTIVATION_FUNCTIONS : 1, may_lack = kind == ROW_rms_norm || kind == ROW_layer_norm;
    memcpy(gate, x, D / E * sizeof *gate);
    for (int word = 0; word < words; word++)
        for (int lacks = 0; lacks <= may_lack; lacks++) {
            size_t count = may_lack ? E : D;
            struct row_op op = {.kind = kind, .a_width = D, .b_width = D, .width = D, .choice = word, .head_dim = E,
                                .numbers = {number, 1.5, 0.25, -1e-6}};
            for (int i = 0; i < ROW_WEIGHTS && !lacks; i++) op.weights[i] = (struct row_weight){y, count, count * sizeof *y};
            k->rows[kind](&op, &(struct row){.a = kind == ROW_gated ? gate : x, .b = y, .out = out, .position = 70000});
            report(row_names[kind], D, E, (size_t)word, digest_of(out, D));
        }
    free(gate), free(out);
}

static void run_rows(size_t D)
{
    static const float extremes[] = {0.0f, -0.0f, 1e-40f, 88.5f, -88.5f, 1e30f, -1e30f, INFINITY, -INFINITY, NAN};
    float *x = floats(D), *y = floats(D);
    for (int extreme = 0; extreme < 2; extreme++) {
        for (int kind = 0; kind < PLAIN_ROW_KINDS; kind++)
            for (size_t E = D; E; E = E > 1 ? 1 : 0) {
                run_plain((enum row_kind)kind, x, y, D, E, 1e-5);
                run_plain((enum row_kind)kind, x, y, D, E, 1.75);
            }
        for (size_t i = 0; i < D; i++) x[i] = extremes[(i + D) % 10];
    }
    free(x), free(y);
}

static void run_experts(size_t n_experts, size_t n_used, size_t D)
{
    float *logits = floats(n_experts), *x = floats(n_used * D), *chosen = buffer(n_experts * sizeof *chosen);
    float *shares = buffer(n_used * sizeof *shares), *out = buffer(D * sizeof *out);
    for (int scores = SCORES_softmax; scores <= SCORES_sqrt_softplus; scores++)
        for (int way = 0; way < 4; way++) {
            const struct row_weight bias = {way & 1 ? x : NULL, n_experts};
            size_t n_groups = way & 2 && n_experts % 4 == 0 && n_experts / 2 >= n_used ? 4 : 1;
            struct row_op op = {.width = n_experts, .choice = scores, .numbers = {n_used, n_groups, (n_groups + 1) / 2}, .weights = {bias}};
            k->rows[ROW_choose_experts](&op, &(struct row){.a = logits, .out = chosen});
            report("choose_experts", n_experts, n_used, (size_t)(scores * 4 + way), digest_of(chosen, n_experts));
            op = (struct row_op){.a_width = n_experts, .width = n_used, .choice = scores, .numbers = {n_used, way & 1, 1.5}, .weights = {bias}};
            k->rows[ROW_expert_shares](&op, &(struct row){.a = logits, .b = chosen, .out = shares});
            report("expert_shares", n_experts, n_used, (size_t)(scores * 4 + way), digest_of(shares, n_used));
            op = (struct row_op){.width = D, .b_width = n_used};
            k->rows[ROW_expert_sum](&op, &(struct row){.a = x, .b = shares, .out = out});
            report("expert_sum", n_experts, n_used, D, digest_of(out, D));
        }
    free(logits), free(x), free(chosen), free(shares), free(out);
}

static void run_logits(size_t V)
{
    float *logits = floats(V), maxima[32];
    int32_t *ids = buffer(V * sizeof *ids);
    double sum = k->exp_sum(logits, V, 8.0f, 0.7f);
    uint32_t magnitude = k->column_maxima(logits, V, maxima, 32);
    report("column_maxima", V, magnitude, 0, digest_of(maxima, 32));
    report("find_from", V, k->find_from(logits, V, 0.5f, 2, ids), 0, 0);
    report("exp_sum", V, 0, 0, digest_of((const float *)&sum, 2));
    free(logits), free(ids);
}

static void run_rope(size_t head_dim, size_t rotary_dim, int32_t position)
{
    size_t n_heads = 3, values = n_heads * head_dim, pairs = rotary_dim / 2;
    float *x = floats(values), *out = buffer(values * sizeof *out), *angles = buffer(rotary_dim * sizeof *angles);
    double *frequency = buffer(pairs * sizeof *frequency);
    for (size_t i = 0; i < pairs; i++) frequency[i] = 1.0 / (double)(1 + 3 * i);
    rope_table(position, frequency, 1.25, pairs, angles);
    report("angles", rotary_dim, (size_t)position, 0, digest_of(angles, rotary_dim));
    for (int halves = 0; halves < 2; halves++) {
        struct row_op op = {.width = values, .head_dim = head_dim, .b_width = rotary_dim, .choice = halves};
        k->rows[ROW_rope](&op, &(struct row){.a = x, .b = angles, .out = out});
        report("rope", head_dim, rotary_dim, (size_t)halves, digest_of(out, values));
    }
    free(x), free(out), free(angles), free(frequency);
}

static void fill_pages(char *cache, const struct kv_head *head, size_t slots)
{
    float *key = buffer(head->keys * sizeof *key), *value = buffer(head->values * sizeof *value);
    memset(cache, 0, (slots + PAGE_SLOTS - 1) / PAGE_SLOTS * page_nbytes(head));
    for (size_t s = 0; s < slots; s++) {
        char *page = cache + s / PAGE_SLOTS * page_nbytes(head);
        for (size_t e = 0; e < head->keys; e++) key[e] = draw_float(e);
        for (size_t e = 0; e < head->values; e++) value[e] = draw_float(e);
        k->store_keys[head->type](key, page, s % PAGE_SLOTS, head->keys);
        k->store_values[head->type](value, page + keys_nbytes(head), s % PAGE_SLOTS, head->values);
    }
    free(key), free(value);
}

/* Whole blocks, and KV splits that are joined: they must be equal, so one digest stands for both. */
static uint64_t attended(const struct attention_job *job, float *out, size_t tokens, size_t width)
{
    size_t columns = tokens * job->group, n_floats = state_floats(&job->head), splits = (job->position + tokens - 1) / SPLIT_SLOTS + 1;
    float *states = buffer(splits * columns * n_floats * sizeof *states);
    for (size_t first = 0; first < columns; first += BLOCK_COLUMNS)
        k->attention(job, first, columns - first < BLOCK_COLUMNS ? columns - first : BLOCK_COLUMNS);
    uint64_t digest = digest_of(out, tokens * width);
    memset(out, 0x5a, tokens * width * sizeof *out);
    for (size_t split = 0; split < splits; split++)
        for (size_t first = 0; first < columns; first += 5)
            k->attention_split(job, first, columns - first < 5 ? columns - first : 5, split, states + (split * columns + first) * n_floats);
    for (size_t c = 0; c < columns; c++) k->attention_join(job, c, states + c * n_floats, columns * n_floats, 0);
    free(states);
    return digest == digest_of(out, tokens * width) ? digest : 0;
}

static void run_attention(struct kv_head head, size_t group, size_t position, size_t tokens)
{
    static const int32_t pages[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    size_t slots = position + tokens, nbytes = (slots + PAGE_SLOTS - 1) / PAGE_SLOTS * page_nbytes(&head);
    float *q = floats(tokens * group * head.keys), *out = buffer(tokens * group * head.values * sizeof *out), *sinks = floats(group);
    float *scratch = buffer(attention_scratch(&head) * sizeof *scratch);
    char *cache = buffer(nbytes);
    fill_pages(cache, &head, slots);
    report(head.type == KV_F16 ? "store f16" : "store q8_0", head.keys, head.values, slots, digest_of_bytes(cache, nbytes));
    struct attention_job job = {.q = q, .out = out, .cache = cache, .pages = pages, .page_stride = page_nbytes(&head), .head = head,
                                .n_heads = group, .group = group, .position = position, .window = SIZE_MAX, .scale = 0.125f, .scratch = scratch};
    report("attention", group, head.keys, slots, attended(&job, out, tokens, group * head.values));
    job.sinks = sinks, job.softcap = 20;
    for (job.window = 1; job.window < 600; job.window = job.window * 9 + 4)
        report("windowed", group, head.keys, slots, attended(&job, out, tokens, group * head.values));
    free(q), free(out), free(sinks), free(scratch), free(cache);
}

static void run_head(enum kv_type type, size_t keys, size_t values)
{
    struct kv_head head = {type, keys, values};
    run_attention(head, 3, 0, 5);
    run_attention(head, 5, 130, keys <= 64 ? 17 : 3);
    if (keys <= 64) run_attention(head, 1, 570, 3);     /* two runs */
}

int main(int count, char **arguments)
{
    static const size_t widths[] = {1, 15, 16, 17, 97, 576};
    static const size_t heads[] = {16, 18, 64, 128, 576};
    for (int i = 0; (k = isa_at(i)) && count > 1 && strcmp(k->name, arguments[1]);) i++;
    if (!k) return fprintf(stderr, "this CPU has no kernels of that name\n"), 1;
    state = 88172645463325252u;
    for (int format = 0; format < FORMATS; format++) run_format((enum format)format), run_wide((enum format)format);
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) run_rows(widths[i]);
    run_experts(8, 2, 64), run_experts(1, 1, 15), run_experts(61, 7, 97), run_experts(32, 5, 16);
    run_logits(5), run_logits(64), run_logits(1500);
    run_rope(64, 64, 1000), run_rope(80, 32, 131071), run_rope(6, 2, 1);
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        for (int type = 0; type < KV_TYPES; type++) run_head((enum kv_type)type, heads[i], i % 2 ? heads[i] : heads[i] + 7);
    return 0;
}
