/* A row cut into lines of 16 numbers, the last of them shorter: what every loop over a row is made of. */
#ifndef OLLAMA_LINES_H
#define OLLAMA_LINES_H

static inline int line_length(size_t d, size_t D) { return D - d < 16 ? (int)(D - d) : 16; }
static inline f32 line_load(const float *p, int n) { return n == 16 ? f32_load(p) : f32_load_first(p, n); }

static inline void line_store(float *p, f32 v, int n)
{
    if (n == 16) f32_store(p, v);
    else f32_store_first(p, v, n);
}

/* `expression` of line x (and y) for every line of a row. */
#define EACH_LINE(op, row, expression)                                                                                      \
    for (size_t d = 0; d < (op)->width; d += 16) {                                                                          \
        int n = line_length(d, (op)->width);                                                                                \
        f32 x = line_load((row)->a + d, n);                                                                                 \
        line_store((row)->out + d, expression, n);                                                                          \
    }

#endif
