"""Buffers go round, and never while libzmq still reads them."""

from __future__ import annotations

import numpy as np

from ollama_zmq.bus.sending import KEPT_BUFFERS, BufferRing


class Tracker:
    """As zmq.MessageTracker: done when libzmq has let go of the memory."""

    def __init__(self, done: bool) -> None:
        self.done = done


def copies(ring, n, *, done):
    made = []
    for i in range(n):
        copied, buffer = ring.copy(np.full((2, 3), i, np.float32))
        buffer.tracker = Tracker(done)
        made.append((copied, buffer))
    return made


def test_a_copy_has_shape_dtype_and_values():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    copied, _ = BufferRing().copy(array)
    np.testing.assert_array_equal(copied, array)
    assert (copied.dtype, copied.flags.c_contiguous) == (np.float32, True)


def test_memory_that_is_still_read_is_not_used_again():
    made = copies(BufferRing(), 3 * KEPT_BUFFERS, done=False)
    for i, (copied, _) in enumerate(made):
        np.testing.assert_array_equal(copied, i)


def test_memory_that_was_read_is_used_again():
    ring = BufferRing()
    (first, _), (second, _) = copies(ring, 2, done=True)
    assert np.shares_memory(first, second)


def test_a_larger_output_gets_larger_memory():
    ring = BufferRing()
    copies(ring, 1, done=True)
    copied, _ = ring.copy(np.ones((100, 100), np.float32))
    np.testing.assert_array_equal(copied, 1)


def test_empty_outputs_are_copied_too():
    copied, _ = BufferRing().copy(np.zeros((0, 5), np.float32))
    assert copied.shape == (0, 5)
