"""What a layer keeps of every sequence from step to step, as a program declares it.

    PagedKvSpec   keys and values by position, in pages of ``PAGE_SLOTS`` slots; any of them can be read again, or, with
                  a window, only the last: pages wholly behind it go back to the pool
    SlotSpec      float32 of a fixed shape, the same for every length: a convolution's last inputs, a recurrent matrix.
                  A step reads it from one slot and writes it to another; it does not rewind

States of one **group** share page numbers: a step has one page table a group and sequence. All states of a group have
one window. Groups count from 0 in a whole model, so a program of some of its layers may have states of group 1 only.
"""

from __future__ import annotations

from math import prod

import msgspec

PAGE_SLOTS = 64  # tokens in one page of the KV cache, the same on every device
KV_TYPES = {"f16": (1, 2), "q8_0": (32, 34)}  # numbers in a block, bytes it takes
MAX_GROUPS = 8
NO_WINDOW = (1 << 31) - 1


class PagedKvSpec(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="paged_kv"):
    """The paged keys and values of one layer: *n_kv_heads* keys of *head_dim* and values of *value_dim* numbers a slot.

    Attributes:
        type: one of ``KV_TYPES``; what each keeps stands in ``ops/store_kv.py``.
        group: which of a step's page tables is meant.
        window: the last positions that can be read, the one that is computed among them.
    """

    name: str
    n_kv_heads: int
    head_dim: int
    value_dim: int
    type: str
    group: int = 0
    window: int = NO_WINDOW

    @property
    def shape(self) -> tuple[int, ...]:
        """What ops bind: key-value heads, numbers of a key, numbers of a value."""
        return self.n_kv_heads, self.head_dim, self.value_dim

    def nbytes(self, kv_pages: int) -> int:
        """Return the bytes of *kv_pages* pages, without what a device pads them with."""
        block, block_nbytes = KV_TYPES[self.type]
        blocks = -(-self.head_dim // block) + -(-self.value_dim // block)
        return kv_pages * PAGE_SLOTS * self.n_kv_heads * blocks * block_nbytes


class SlotSpec(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="slot"):
    """A state of *shape* numbers of one layer, float32, in a slot of each sequence."""

    name: str
    shape: tuple[int, ...]

    def nbytes(self, slots: int) -> int:
        """Return the bytes of so many *slots*."""
        return 4 * slots * prod(self.shape)


StateSpec = PagedKvSpec | SlotSpec


def pages_for(tokens: int) -> int:
    """How many pages hold that many tokens."""
    return -(-tokens // PAGE_SLOTS)


def first_page(position: int, window: int) -> int:
    """The page of a sequence that its table begins with in a step whose first token stands at *position*."""
    return max(0, position - window + 1) // PAGE_SLOTS
