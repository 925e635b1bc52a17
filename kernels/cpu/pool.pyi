from collections.abc import Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt
from _typeshed import ReadableBuffer

RECODING_NAMES: tuple[str, ...]

class Pool:
    lock: Lock
    def __init__(self, threads: int, cpus: Sequence[int] = ()) -> None: ...
    @property
    def handle(self) -> object: ...
    def close(self) -> None: ...
    def pack(self, format: int, file: ReadableBuffer, N: int, K: int, packed: int) -> None: ...  # noqa: A002
    def recode(
        self, name: str, table: npt.NDArray[np.uint8], file: ReadableBuffer, N: int, K: int, packed: int
    ) -> None: ...
    def read(self, words: npt.NDArray[np.uint64]) -> None: ...
