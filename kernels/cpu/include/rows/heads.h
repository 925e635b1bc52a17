/* Parts of heads, taken and put together. Contracts: ollama_zmq/ops/take_of_heads.py, join_heads.py. */
#ifndef OLLAMA_HEADS_H
#define OLLAMA_HEADS_H

#include <string.h>

#include "rows/table.h"

static void row_take_of_heads(const struct row_op *op, const struct row *row)
{
    size_t n_heads = (size_t)op->numbers[0], start = (size_t)op->numbers[1], size = (size_t)op->numbers[2];
    for (size_t h = 0, of_head = op->a_width / n_heads; h < n_heads; h++)
        memcpy(row->out + h * size, row->a + h * of_head + start, size * sizeof(float));
}

static void row_join_heads(const struct row_op *op, const struct row *row)
{
    size_t n_heads = (size_t)op->numbers[0], a = op->a_width / n_heads, b = op->b_width / n_heads;
    for (size_t h = 0; h < n_heads; h++) {
        memcpy(row->out + h * (a + b), row->a + h * a, a * sizeof(float));
        memcpy(row->out + h * (a + b) + a, row->b + h * b, b * sizeof(float));
    }
}

#endif
