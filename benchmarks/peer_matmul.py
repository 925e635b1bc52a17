"""llama.cpp's mat-mul, driven through ggml's C interface: x [T, K] float32 times a weight [N, K] of one tensor type.

    peer_matmul.py THREADS

It runs under a Python that has llama-cpp-python 0.3.36 (``tox run -e peer``) and needs nothing of ours. Each line of
stdin, ``{"kind": ggml type id, "T": n, "N": n, "K": n}``, is answered by the seconds of one mat-mul for each way ggml
can hold the weight: as it is in the file, and repacked where it has a layout for it. Products are made at their first
line; those of one type are kept until another type is asked for.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import sys
import time
from ctypes import POINTER, c_bool, c_char, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p

import numpy as np
from peer_llamacpp import library

CPU = 0
DRAWN_ROWS = 64  # rows that are quantized; the weight repeats them


class Parameters(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class Tensor(ctypes.Structure):
    """struct ggml_tensor; ``extra`` is set where a weight is repacked."""

    _fields_ = [
        *[("type", c_int), ("buffer", c_void_p), ("ne", c_int64 * 4), ("nb", c_size_t * 4), ("op", c_int)],
        *[("op_params", c_int32 * 16), ("flags", c_int32), ("src", c_void_p * 10), ("view_src", c_void_p)],
        *[("view_offs", c_size_t), ("data", c_void_p), ("name", c_char * 64), ("extra", c_void_p)],
    ]


def declare(library_name: str, name: str, result: object, *arguments: object) -> object:
    function = getattr(library(library_name), name)
    function.restype, function.argtypes = result, arguments
    return function


tensor = POINTER(Tensor)
ggml_init = declare("ggml-base", "ggml_init", c_void_p, Parameters)
new_tensor = declare("ggml-base", "ggml_new_tensor_2d", tensor, c_void_p, c_int, c_int64, c_int64)
mul_mat = declare("ggml-base", "ggml_mul_mat", tensor, c_void_p, tensor, tensor)
new_graph = declare("ggml-base", "ggml_new_graph", c_void_p, c_void_p)
expand = declare("ggml-base", "ggml_build_forward_expand", None, c_void_p, tensor)
allocate = declare("ggml-base", "ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, c_void_p, c_void_p)
release = declare("ggml-base", "ggml_backend_buffer_free", None, c_void_p)
ggml_free = declare("ggml-base", "ggml_free", None, c_void_p)
set_tensor = declare("ggml-base", "ggml_backend_tensor_set", None, tensor, c_void_p, c_size_t, c_size_t)
get_tensor = declare("ggml-base", "ggml_backend_tensor_get", None, tensor, c_void_p, c_size_t, c_size_t)
quantize = declare(
    *("ggml-base", "ggml_quantize_chunk", c_size_t, c_int),
    *(POINTER(c_float), c_void_p, c_int64, c_int64, c_int64, c_void_p),
)
default_type = declare("ggml-base", "ggml_backend_get_default_buffer_type", c_void_p, c_void_p)
registry_of = declare("ggml-base", "ggml_backend_dev_backend_reg", c_void_p, c_void_p)
address_of = declare("ggml-base", "ggml_backend_reg_get_proc_address", c_void_p, c_void_p, c_char_p)
start = declare("ggml-base", "ggml_backend_dev_init", c_void_p, c_void_p, c_char_p)
compute = declare("ggml-base", "ggml_backend_graph_compute", c_int, c_void_p, c_void_p)
device_of = declare("ggml", "ggml_backend_dev_by_type", c_void_p, c_int)
set_threads = declare("ggml-cpu", "ggml_backend_cpu_set_n_threads", None, c_void_p, c_int)


class Matmul:
    """One product with the weight in one kind of buffer."""

    def __init__(self, backend: int, buffer_type: int, *, kind: int, T: int, N: int, K: int) -> None:
        self.backend = backend
        parameters = Parameters(1 << 20, None, True)
        self.contexts = [ggml_init(parameters), ggml_init(parameters)]
        self.weight = new_tensor(self.contexts[0], kind, K, N)
        self.x = new_tensor(self.contexts[1], 0, K, T)
        self.out = mul_mat(self.contexts[1], self.weight, self.x)
        self.graph = new_graph(self.contexts[1])
        expand(self.graph, self.out)
        self.buffers = [allocate(self.contexts[0], buffer_type), allocate(self.contexts[1], default_type(backend))]

    def fill(self) -> None:
        """Draw weight and tokens. Not for a weight that the buffer has no layout for."""
        K, N, T = self.weight.contents.ne[0], self.weight.contents.ne[1], self.x.contents.ne[1]
        rng = np.random.default_rng(1)
        rows = rng.normal(0, 0.02, (DRAWN_ROWS, K)).astype(np.float32)
        packed = np.zeros(rows.nbytes, np.uint8)
        values = rows.ctypes.data_as(POINTER(c_float))
        nbytes = quantize(self.weight.contents.type, values, packed.ctypes.data, 0, DRAWN_ROWS, K, None)
        whole = np.tile(packed[:nbytes].reshape(DRAWN_ROWS, -1), (-(-N // DRAWN_ROWS), 1))[:N].copy()
        set_tensor(self.weight, whole.ctypes.data, 0, whole.nbytes)
        tokens = rng.normal(size=(T, K)).astype(np.float32)
        set_tensor(self.x, tokens.ctypes.data, 0, tokens.nbytes)

    def seconds(self) -> float:
        started = time.perf_counter()
        if compute(self.backend, self.graph) != 0:
            raise SystemExit("ggml: a mat-mul failed")
        return time.perf_counter() - started

    def close(self) -> None:
        for buffer in self.buffers:
            release(buffer)
        for context in self.contexts:
            ggml_free(context)


class Peer:
    """The CPU backend and every way it has to hold a weight."""

    def __init__(self, threads: int) -> None:
        device = device_of(CPU)
        self.backend = start(device, None)
        set_threads(self.backend, threads)
        self.plain = default_type(self.backend)
        function = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)
        extra = function(address_of(registry_of(device), b"ggml_backend_dev_get_extra_bufts"))(device)
        self.extra = list(itertools.takewhile(bool, (extra[i] for i in itertools.count())))
        self.kind = -1
        self.products: dict[tuple[int, int, int], list[Matmul]] = {}

    def seconds(self, *, kind: int, T: int, N: int, K: int) -> list[float]:
        """Seconds of each way, the plain one first."""
        if kind != self.kind:
            for way in itertools.chain.from_iterable(self.products.values()):
                way.close()
            self.kind, self.products = kind, {}
        if (T, N, K) not in self.products:
            self.products[T, N, K] = self._ways(kind, T, N, K)
        return [way.seconds() for way in self.products[T, N, K]]

    def _ways(self, kind: int, T: int, N: int, K: int) -> list[Matmul]:
        """Return the product in each buffer type that has a layout for the weight, each of them run once."""
        buffer_types = (self.plain, *self.extra)
        made = [Matmul(self.backend, buffer_type, kind=kind, T=T, N=N, K=K) for buffer_type in buffer_types]
        ways = [way for way in made if way is made[0] or way.weight.contents.extra]
        for way in ways:
            way.fill()
            way.seconds()
        return ways


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints must not mix with the answers
    peer = Peer(int(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(peer.seconds(**json.loads(line))), file=answer, flush=True)


if __name__ == "__main__":
    main()
