"""Multiply each row by a weight matrix: the op that moves nearly all the bytes.

    out[t, n] = sum_k x[t, k] * weight[n, k]

The weight keeps the type it has in the file. For a float weight (F32, F16, BF16) ``x`` stays float32. For a quantized
weight a device may round ``x`` to int8 in blocks, with one scale per 32 values (formats with 32-value blocks) or per
256 (K-quants), as llama.cpp does; the error of an output is then that of rounding, with the standard deviation

    sqrt(sum_b (max|x_b| / 127)^2 / 12 * sum_(k in b) weight[n, k]^2)        b = blocks of x

``rtol`` bounds the root mean square, over many outputs, of the error divided by ``sqrt(sum_k x^2 * weight^2)``; with
outlier channels it is 0.010 for scales per 32 values and 0.016 per 256.
"""

from ollama_zmq.ops.spec import Input, Op, Output, Weight

LINEAR = Op(
    name="linear",
    args={"x": Input("T K"), "weight": Weight("N K"), "out": Output("T N")},
    rtol=2e-2,
    atol=1e-6,
)
