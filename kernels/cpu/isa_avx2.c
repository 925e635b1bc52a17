/* The kernels on AVX2, FMA and F16C. The target is set here so that one build without -m flags serves every CPU. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")

#include "lanes/avx2.h"

#include "table.h"

const struct kernels kernels_avx2 = KERNEL_TABLE("avx2");

#endif
