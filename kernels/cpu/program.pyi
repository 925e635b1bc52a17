from collections.abc import Mapping
from typing import Any

from ollama_zmq.devices.base import Array
from ollama_zmq.kernels.cpu.pool import Pool
from ollama_zmq.kernels.cpu.simd import Kernels
from ollama_zmq.ops.state import PagedKvSpec

ROW_KINDS: dict[str, int]
ACTIVATIONS: tuple[str, ...]
KV_TYPES: dict[str, int]
SPLIT_PAGES: int
CHECKS_INDICES: bool

def attention_scratch_nbytes(cache: PagedKvSpec) -> int: ...
def softmax_state_nbytes(cache: PagedKvSpec) -> int: ...
def page_nbytes(cache: PagedKvSpec) -> int: ...
def slots_nbytes(T: int, n_experts: int, n_used: int) -> int: ...

class CompiledProgram:
    def __init__(
        self,
        kernels: Kernels,
        pool: Pool,
        n_steps: int,
        *,
        scratch: int,
        thread_scratch: int,
        softmax_states: int,
        n_state_floats: int,
        max_tokens: int,
        max_rows: int,
        kv_pages: int,
        width: int,
        vocabulary: int,
    ) -> None: ...
    def add_rows(self, symbol: str, ops: list[dict[str, Any]]) -> None: ...
    def add_linears(self, symbol: str, parts: list[dict[str, int]], *, of_experts: bool) -> None: ...
    def add_gather(self, symbol: str, op: Mapping[str, int]) -> None: ...
    def add_attention(self, op: Mapping[str, int], cache: PagedKvSpec, attrs: Mapping[str, Any]) -> None: ...
    def run(
        self,
        array: Array,
        lengths: tuple[int, ...],
        positions: tuple[int, ...],
        pages: tuple[tuple[int, ...], ...],
        rows: tuple[int, ...],
    ) -> bool: ...
