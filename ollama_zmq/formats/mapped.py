"""Mapped files that weights are read from: resident pages of what has been packed are dropped (``madvise``).

The pages stay in the system's page cache. Without this a model counts twice in the process until its file is closed.
"""

from __future__ import annotations

import mmap

import numpy as np


def drop_resident_pages(data: memoryview) -> None:
    """Unmap the pages of *data* if it is a part of a mapped file; they come back when they are read again."""
    file = data.obj
    if not isinstance(file, mmap.mmap) or not data.nbytes or not data.readonly:
        return
    start = _address(data) - _address(memoryview(file))
    begin = start // mmap.PAGESIZE * mmap.PAGESIZE
    file.madvise(mmap.MADV_DONTNEED, begin, start + data.nbytes - begin)


def _address(data: memoryview) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)
