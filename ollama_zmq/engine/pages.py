"""The paged KV cache and its automatic prefix caching: who holds which page, and what is in it already.

A page is in one of three states:

    blank     nothing of use in it                        -> taken first
    held      by one or more sequences (``holders``)      -> never given to another to write
    idle      by none, its content still known            -> reused, or evicted (LRU) when no blank one is left

Pages are content-addressed: known by the tokens they were computed from. A full page is named by its digest, a hash
over its own tokens and the digest of the page before it, so equal digests mean equal prefixes from position 0 on. A
sequence that starts with the same tokens holds the same full pages; nobody writes to them, for positions only grow, and
so nothing need be copied on write.

A page that is not full belongs to one sequence. When that ends the page stays as an idle *tail*; a sequence that goes
on with the same tokens takes it over and writes behind what they have in common. So does a sequence that has only the
beginning of an idle page's tokens, full or not, unless a cached page follows that page, which would be lost with it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ollama_zmq.ops.state import PAGE_SLOTS

ROOT = b""  # the digest before the first page


@dataclass(slots=True)
class PageTable:
    """The pages of one sequence.

    Attributes:
        pages: page numbers in order of position.
        digests: of those pages that are full.
        cached: tokens whose keys and values are in the pages.
    """

    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a page that a later sequence may want: the tokens in it and the digest of the page before."""

    parent: bytes
    token_ids: tuple[int, ...]
    digest: bytes | None  # None: not full


def digest_of(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of a full page: 16 bytes of BLAKE2b over the name before it and its own tokens."""
    return hashlib.blake2b(parent + np.asarray(token_ids, "<i4").tobytes(), digest_size=16).digest()


def pages_for(tokens: int) -> int:
    """How many pages hold that many tokens."""
    return -(-tokens // PAGE_SLOTS)


class PagePool:
    """All KV pages of a loaded model.

    Attributes:
        holders: for each page, how many sequences have it in their table.
    """

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        self.forget()

    def forget(self) -> None:
        """Make every page blank: what they held is lost, and so is every table."""
        self.holders = [0] * self.n_pages
        self._blank = list(range(self.n_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._content: dict[int, Content] = {}
        self._full: dict[bytes, int] = {}  # digest -> page
        self._after: defaultdict[bytes, set[int]] = defaultdict(set)  # digest of the page before -> pages

    @property
    def available(self) -> int:
        """Pages that can be had without taking one from a sequence."""
        return len(self._blank) + len(self._idle)

    def reuse(self, token_ids: Sequence[int]) -> PageTable:
        """A table with the pages that already hold the beginning of *token_ids*.

        The last token is left out, because somebody will want its logits.
        """
        table, end = PageTable(), len(token_ids) - 1
        for page, digest in self._known(token_ids):
            self._hold(page)
            table.pages.append(page)
            table.digests.append(digest)
        table.cached = len(table.pages) * PAGE_SLOTS
        parent = table.digests[-1] if table.digests else ROOT
        self._take_over_tail(table, parent, tuple(token_ids[table.cached : min(end, table.cached + PAGE_SLOTS)]))
        return table

    def held(self, token_ids: Sequence[int]) -> int:
        """How many of the pages that :meth:`reuse` would give are held by others, so that none is taken for them."""
        return sum(self.holders[page] > 0 for page, _ in self._known(token_ids))

    def grow(self, table: PageTable, tokens: int) -> bool:
        """Give *table* the pages that *tokens* tokens need; when there are not enough, nothing changes."""
        missing = pages_for(tokens) - len(table.pages)
        if missing > self.available:
            return False
        table.pages.extend(self._take() for _ in range(missing))
        return True

    def written(self, table: PageTable, token_ids: Sequence[int], cached: int) -> None:
        """Note that the first *cached* of *token_ids* are in the pages; those that became full can be shared."""
        table.cached = cached
        for i in range(len(table.digests), cached // PAGE_SLOTS):
            parent = table.digests[-1] if table.digests else ROOT
            own = tuple(token_ids[i * PAGE_SLOTS : (i + 1) * PAGE_SLOTS])
            digest = digest_of(parent, own)
            table.digests.append(digest)
            if digest not in self._full:
                self._full[digest] = table.pages[i]
                self._know(table.pages[i], Content(parent, own, digest))

    def release(self, table: PageTable, token_ids: Sequence[int]) -> None:
        """Let go of all pages of *table*; what is in them stays known until they are taken. The table is empty then."""
        tail = tuple(token_ids[len(table.digests) * PAGE_SLOTS : table.cached])
        if tail:
            self._know_tail(table, tail)
        for page in reversed(table.pages):  # the end of a prefix goes before its beginning
            self.holders[page] -= 1
            if not self.holders[page]:
                if page in self._content:
                    self._idle[page] = None
                else:
                    self._blank.append(page)
        table.pages, table.digests, table.cached = [], [], 0

    def check(self) -> None:
        """Assert what holds between any two calls: every page is in one state, and what is known of it is found."""
        held = [page for page, n in enumerate(self.holders) if n]
        assert min(self.holders, default=0) >= 0
        assert sorted([*self._blank, *self._idle, *held]) == list(range(self.n_pages)), "a page in no state, or in two"
        assert not self._content.keys() & set(self._blank), "a blank page of which something is known"
        assert self._idle.keys() <= self._content.keys(), "an idle page of which nothing is known"
        for page, content in self._content.items():
            assert page in self._after[content.parent], f"page {page} is not found behind the one before it"
            full = content.digest is not None
            assert len(content.token_ids) == PAGE_SLOTS if full else 0 < len(content.token_ids) < PAGE_SLOTS
            assert not full or content.digest == digest_of(content.parent, content.token_ids)
        full_pages = {content.digest: page for page, content in self._content.items() if content.digest is not None}
        assert full_pages == self._full, "a full page that is not found by its digest"
        assert sum(map(len, self._after.values())) == len(self._content), "a page behind one that it does not follow"

    def _known(self, token_ids: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """(page, digest) of every full page at the beginning of *token_ids*, the last token left out."""
        digest = ROOT
        for start in range(0, len(token_ids) - PAGE_SLOTS, PAGE_SLOTS):
            digest = digest_of(digest, token_ids[start : start + PAGE_SLOTS])
            page = self._full.get(digest)
            if page is None:
                return
            yield page, digest

    def _hold(self, page: int) -> None:
        self.holders[page] += 1
        self._idle.pop(page, None)

    def _take(self) -> int:
        """A page for writing: a blank one, or one that is evicted."""
        page = self._blank.pop() if self._blank else self._evict()
        self.holders[page] = 1
        return page

    def _evict(self) -> int:
        """The page that has been idle longest, of which nothing is known any more."""
        page, _ = self._idle.popitem(last=False)
        self._unknow(page)
        return page

    def _take_over_tail(self, table: PageTable, parent: bytes, wanted: tuple[int, ...]) -> None:
        best, best_common = -1, 0
        for page in self._after.get(parent, ()):
            content = self._content[page]
            if self.holders[page] or (content.digest is not None and self._after.get(content.digest)):
                continue
            common = common_prefix(content.token_ids, wanted)
            if (common, -page) > (best_common, -best) and common:
                best, best_common = page, common
        if best >= 0:
            self._unknow(best)
            self._hold(best)
            table.pages.append(best)
            table.cached += best_common

    def _know_tail(self, table: PageTable, tail: tuple[int, ...]) -> None:
        parent = table.digests[-1] if table.digests else ROOT
        siblings = [self._content[page].token_ids for page in self._after.get(parent, ())]
        if not any(tokens[: len(tail)] == tail for tokens in siblings):
            self._know(table.pages[len(table.digests)], Content(parent, tail, None))

    def _know(self, page: int, content: Content) -> None:
        self._content[page] = content
        self._after[content.parent].add(page)

    def _unknow(self, page: int) -> None:
        content = self._content.pop(page)
        pages = self._after[content.parent]
        pages.discard(page)
        if not pages:
            del self._after[content.parent]
        if content.digest is not None:
            del self._full[content.digest]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens *a* and *b* share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
