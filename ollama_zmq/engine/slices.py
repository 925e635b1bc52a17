"""Parts of sequences that travel together: the slices of a microbatch."""

from __future__ import annotations

import msgspec
import numpy as np

from ollama_zmq.engine.pages import pages_for
from ollama_zmq.engine.requests import Microbatch
from ollama_zmq.engine.sequence import Sequence

QUANTUM = 256  # tokens of a prompt before the next prompt has some


class Slice(msgspec.Struct, frozen=True):
    """The next *length* tokens of a sequence, from position *start*.

    Attributes:
        rows: those whose logits are wanted.
        draft: the last of the tokens, which are a draft.
    """

    sequence: Sequence
    start: int
    length: int
    rows: range
    draft: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        """The position behind its last token that is known."""
        return self.start + self.length - len(self.draft)

    @property
    def is_within_quantum(self) -> bool:
        """Whether its sequence is prefilled, and has the next chunk, too, before others."""
        return not self.sequence.decodes and self.start // QUANTUM == self.stop // QUANTUM


def microbatch_of(number: int, slices: list[Slice]) -> Microbatch:
    """Microbatch *number*, which carries *slices* in this order."""
    token_ids: list[int] = []
    rows: list[int] = []
    for slice_ in slices:
        rows += [len(token_ids) + row for row in slice_.rows]
        token_ids += (*slice_.sequence.tokens[slice_.start : slice_.stop], *slice_.draft)
    return Microbatch(
        number,
        np.array(token_ids, np.int32),
        lengths=tuple(slice_.length for slice_ in slices),
        positions=tuple(slice_.start for slice_ in slices),
        pages=tuple(tuple(slice_.sequence.table.pages[: pages_for(slice_.start + slice_.length)]) for slice_ in slices),
        rows=tuple(rows),
        prompt_tokens=sum(slice_.length for slice_ in slices if not slice_.sequence.decodes),
    )
