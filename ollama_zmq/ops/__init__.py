"""The tensor ops: one declaration per file. What is promised here is kept by the kernels of each device."""
