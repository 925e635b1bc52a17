import numpy as np
import numpy.typing as npt

from ollama_zmq.kernels.cpu.simd import Kernels

FASTEST: Kernels

def largest(logits: npt.NDArray[np.float32], k: int, kernels: Kernels = ...) -> npt.NDArray[np.int64]: ...
def exp_sum(logits: npt.NDArray[np.float32], peak: float, scale: float = 1.0, kernels: Kernels = ...) -> float: ...
