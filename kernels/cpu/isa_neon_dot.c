/* The kernels on Advanced SIMD with SDOT. The target is set here so that one build without -m flags serves every CPU. */
#if defined(__aarch64__)
#pragma GCC target("arch=armv8.2-a+dotprod")

#include "lanes/neon.h"

#include "table.h"

const struct kernels kernels_neon_dot = KERNEL_TABLE("neon-dot");

#endif
