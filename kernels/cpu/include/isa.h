/* Which table of kernels to use on this CPU. */
#ifndef OLLAMA_ISA_H
#define OLLAMA_ISA_H

#include <stddef.h>

#include "kernels.h"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

/* The i-th table that this CPU can run, fastest first, or NULL. */
static const struct kernels *isa_at(int i)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#ifdef LANES_EVEX
    int vnni = avx512;
#else
    int vnni = avx2 && __builtin_cpu_supports("avxvnni");
#endif
    if (avx512 && i-- == 0) return &kernels_avx512;
    if (vnni && i-- == 0) return &kernels_avx2_vnni;
    if (avx2 && i-- == 0) return &kernels_avx2;
#elif defined(__aarch64__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP && i-- == 0) return &kernels_neon_dot;
    if (i-- == 0) return &kernels_neon;
#endif
    return i == 0 ? &kernels_generic : NULL;
}

#endif
