/* Which experts a row is routed to. Contract: ollama_zmq/ops/expert_linear.py. */
#ifndef OLLAMA_SLOTS_H
#define OLLAMA_SLOTS_H

#include <stddef.h>
#include <stdint.h>

enum { MAX_EXPERTS = 1024 };

/* The experts of one row: those that are chosen, lowest first, and the lowest others if they are too few. */
static inline void slots_of_row(const float *chosen, size_t n_experts, size_t n_used, int32_t *expert)
{
    size_t n = 0;
    for (int others = 0; others < 2; others++)
        for (size_t e = 0; e < n_experts && n < n_used; e++)
            if ((chosen[e] == 0) == others) expert[n++] = (int32_t)e;
}

#endif
