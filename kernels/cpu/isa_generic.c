/* The kernels in portable C: what every other instruction set must equal. */
#include "lanes/generic.h"

#include "table.h"

const struct kernels kernels_generic = KERNEL_TABLE("generic");
