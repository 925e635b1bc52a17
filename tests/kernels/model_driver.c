/* Computes the logits of a llama model with the kernels of one instruction set, put together by hand.
 *
 *   model_driver ISA MODEL LOGITS      MODEL as test_model_bits.py writes it; LOGITS: float32 [T, V]
 *
 * MODEL is little-endian: struct sizes, token embeddings float32 [T, D], double frequencies [head_dim / 2], and the tensors in the order
 * in which they are needed below, each as format, N, K (32 bits) and the bytes it has in a GGUF file; a vector has N = 1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/page.h"
#include "isa.h"
#include "packing/pack.h"
#include "packing/unpack.h"
#include "rows/angles.h"

struct sizes { uint32_t n_layers, D, n_heads, n_kv_heads, head_dim, T; float eps, scale; };

static const struct kernels *k;
static struct sizes sizes;
static FILE *model;

static void *buffer(size_t nbytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, nbytes + 64)) abort();
    memset(memory, 0, nbytes + 64);
    return memory;
}

static float *rows_of(size_t width) { return buffer(sizes.T * width * sizeof(float)); }

static void read_into(void *memory, size_t nbytes)
{
    if (fread(memory, 1, nbytes, model) != nbytes) abort();
}

struct tensor { uint32_t format, N, K; };

static void *next_tensor(struct tensor *found)
{
    read_into(found, sizeof *found);
    size_t nbytes = found->N * row_nbytes(found->format, found->K);
    void *file = buffer(nbytes);
    read_into(file, nbytes);
    return file;
}

static void norm(const float *x, float *out)
{
    struct tensor found;
    float *weight = next_tensor(&found);
    struct row_op op = {.width = sizes.D, .head_dim = sizes.D, .weights = {{weight, sizes.D}}, .numbers = {sizes.eps}};
    for (size_t t = 0; t < sizes.T; t++) k->rows[ROW_rms_norm](&op, &(struct row){.a = x + t * sizes.D, .out = out + t * sizes.D});
    free(weight);
}

/* The next tensor times x [T, K]: float32 [T, N]. */
static float *linear(const float *x, uint32_t *width)
{
    struct tensor found;
    unsigned char *file = next_tensor(&found);
    size_t N = found.N, K = found.K, T = sizes.T;
    enum activation kind = format_infos[found.format].x;
    char *packed = buffer(groups_of(N) * GROUP_ROWS * row_nbytes(found.format, K)), *panels = buffer(T * activation_nbytes(kind, K));
    float *out = rows_of(N);
    for (size_t g = 0; g < groups_of(N); g++) pack_group(found.format, file, N, K, g, packed);
    for (size_t t = 0; t < T; t++) k->pack_activation(kind, x + t * K, K, column_of(t, T, k->panel_columns), panels);
    struct linear_job job = {.weight = packed, .x = panels, .out = out, .K = K, .N = N, .T = T};
    k->linear[found.format](&job, 0, groups_of(N));
    free(file), free(packed), free(panels);
    *width = found.N;
    return out;
}

static void turn(float *x, size_t n_heads, const double *frequencies)
{
    size_t E = sizes.head_dim;
    float *angles = buffer(E * sizeof *angles);
    struct row_op op = {.width = n_heads * E, .head_dim = E, .b_width = E};
    for (size_t t = 0; t < sizes.T; t++) {
        rope_table((int32_t)t, frequencies, 1.0, E / 2, angles);
        k->rows[ROW_rope](&op, &(struct row){.a = x + t * n_heads * E, .b = angles, .out = x + t * n_heads * E});
    }
    free(angles);
}

/* Attention of all tokens to themselves and those before; the keys and values of each kv head stand in pages of their own. */
static float *attend(const float *q, const float *keys, const float *values)
{
    size_t E = sizes.head_dim, G = sizes.n_kv_heads, H = sizes.n_heads, group = H / G, n_pages = (sizes.T + PAGE_SLOTS - 1) / PAGE_SLOTS;
    const struct kv_head head = {KV_F16, E, E};
    char *cache = buffer(n_pages * page_nbytes(&head));
    float *scratch = buffer(attention_scratch(&head) * sizeof *scratch), *out = rows_of(H * E);
    int32_t *pages = buffer(n_pages * sizeof *pages);
    for (size_t i = 0; i < n_pages; i++) pages[i] = (int32_t)i;
    for (size_t g = 0; g < G; g++) {
        for (size_t t = 0; t < sizes.T; t++) {
            char *page = cache + t / PAGE_SLOTS * page_nbytes(&head);
            k->store_keys[head.type](keys + (t * G + g) * E, page, t % PAGE_SLOTS, E);
            k->store_values[head.type](values + (t * G + g) * E, page + keys_nbytes(&head), t % PAGE_SLOTS, E);
        }
        struct attention_job job = {
            .q = q + g * group * E, .out = out + g * group * E, .cache = cache, .pages = pages, .page_stride = page_nbytes(&head),
            .head = head, .n_heads = H, .group = group, .window = SIZE_MAX, .scale = sizes.scale, .scratch = scratch,
        };
        for (size_t first = 0; first < sizes.T * group; first += BLOCK_COLUMNS) {
            size_t left = sizes.T * group - first;
            k->attention(&job, first, left < BLOCK_COLUMNS ? left : BLOCK_COLUMNS);
        }
    }
    free(cache), free(scratch), free(pages);
    return out;
}

static void add(float *hidden_state, float *x)
{
    for (size_t i = 0; i < (size_t)sizes.T * sizes.D; i++) hidden_state[i] += x[i];
    free(x);
}

static void layer(float *hidden_state, float *normed, const double *frequencies)
{
    uint32_t width;
    norm(hidden_state, normed);
    float *q = linear(normed, &width), *keys = linear(normed, &width), *values = linear(normed, &width);
    turn(q, sizes.n_heads, frequencies), turn(keys, sizes.n_kv_heads, frequencies);
    float *attended = attend(q, keys, values);
    add(hidden_state, linear(attended, &width));
    free(q), free(keys), free(values), free(attended);

    norm(hidden_state, normed);
    float *gate = linear(normed, &width), *up = linear(normed, &width);
    struct row_op op = {.width = width, .head_dim = 1, .choice = ACTIVATION_silu};
    for (size_t t = 0; t < sizes.T; t++)
        k->rows[ROW_gated](&op, &(struct row){.a = gate + t * width, .b = up + t * width, .out = gate + t * width});
    add(hidden_state, linear(gate, &width));
    free(gate), free(up);
}

int main(int count, char **arguments)
{
    if (count != 4 || !(model = fopen(arguments[2], "rb"))) return fprintf(stderr, "model_driver ISA MODEL LOGITS\n"), 2;
    for (int i = 0; (k = isa_at(i)) && strcmp(k->name, arguments[1]);) i++;
    if (!k) return fprintf(stderr, "this CPU has no kernels of that name\n"), 1;
    read_into(&sizes, sizeof sizes);
    float *hidden_state = rows_of(sizes.D), *normed = rows_of(sizes.D);
    double *frequencies = buffer(sizes.head_dim / 2 * sizeof *frequencies);
    uint32_t V;
    read_into(hidden_state, (size_t)sizes.T * sizes.D * sizeof *hidden_state);
    read_into(frequencies, sizes.head_dim / 2 * sizeof *frequencies);
    for (uint32_t i = 0; i < sizes.n_layers; i++) layer(hidden_state, normed, frequencies);
    norm(hidden_state, normed);
    float *logits = linear(normed, &V);
    FILE *out = fopen(arguments[3], "wb");
    if (!out || fwrite(logits, sizeof *logits, (size_t)sizes.T * V, out) != (size_t)sizes.T * V || fclose(out)) return 1;
    return 0;
}
