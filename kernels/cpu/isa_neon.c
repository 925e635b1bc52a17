/* The kernels on the Advanced SIMD that every 64-bit Arm CPU has. */
#if defined(__aarch64__)

#include "lanes/neon.h"

#include "table.h"

const struct kernels kernels_neon = KERNEL_TABLE("neon");

#endif
