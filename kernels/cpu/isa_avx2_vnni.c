/* The kernels on AVX2 with AVX-VNNI. The target is set here so that one build without -m flags serves every CPU. */
#if defined(__x86_64__)
#ifdef LANES_EVEX
#pragma GCC target("avx2,fma,f16c,avx512vl,avx512vnni")
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif
#define LANES_VNNI

#include "lanes/avx2.h"

#include "table.h"

const struct kernels kernels_avx2_vnni = KERNEL_TABLE("avx2-vnni");

#endif
