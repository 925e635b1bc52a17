/* The kernels on AVX-512 with VNNI. The target is set here so that one build without -m flags serves every CPU. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")

#include "lanes/avx512.h"

#include "table.h"

const struct kernels kernels_avx512 = KERNEL_TABLE("avx512");

#endif
