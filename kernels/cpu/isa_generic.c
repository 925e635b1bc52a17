/* The kernels in portable C: what every other instruction set must equal. */
#include "lanes_generic.h"

#include "attention.h"
#include "linear.h"
#include "logits.h"
#include "quantize.h"
#include "rows.h"
#include "store.h"

#include "table.h"

const struct kernels kernels_generic = KERNEL_TABLE("generic");
