from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ollama_zmq.engine.pages import PagePool, PageTable, common_prefix, pages_for
from ollama_zmq.ops.state import PAGE_SLOTS


def fill(pool, token_ids):
    """A table whose pages hold all of *token_ids*, and how many of them had to be computed."""
    table = pool.reuse(token_ids)
    reused = table.cached
    assert pool.grow(table, len(token_ids))
    pool.written(table, token_ids, len(token_ids))
    return table, len(token_ids) - reused


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (64, 1), (65, 2), (128, 2)])
def test_pages_for(tokens, pages):
    assert pages_for(tokens) == pages


def test_growth_is_all_or_nothing():
    pool, table = PagePool(2), PageTable()
    assert not pool.grow(table, 3 * PAGE_SLOTS)
    assert (table.pages, pool.available) == ([], 2)
    assert pool.grow(table, PAGE_SLOTS + 1)
    assert (len(table.pages), pool.available) == (2, 0)


def test_full_pages_are_shared_while_both_run():
    pool = PagePool(8)
    first, _ = fill(pool, list(range(200)))
    second, computed = fill(pool, [*range(150), 999])
    assert second.pages[:2] == first.pages[:2]
    assert second.pages[2] != first.pages[2]
    assert computed == 151 - 128


def test_the_same_tokens_behind_another_beginning_are_not_the_same_page():
    pool = PagePool(8)
    fill(pool, [1] * 64 + [2] * 64 + [3])
    _, computed = fill(pool, [9] * 64 + [2] * 64 + [3])
    assert computed == 129


def test_the_last_token_is_always_computed():
    pool = PagePool(8)
    for length in (1, 63, 64, 65, 128):
        table, _ = fill(pool, list(range(length)))
        pool.release(table, list(range(length)))
        table, computed = fill(pool, list(range(length)))
        assert computed == 1
        pool.release(table, list(range(length)))


def test_a_tail_is_continued_where_it_ended():
    pool = PagePool(8)
    table, _ = fill(pool, list(range(100)))
    pool.release(table, list(range(100)))
    _, computed = fill(pool, list(range(130)))
    assert computed == 30


def test_a_tail_that_differs_is_continued_from_the_difference():
    pool = PagePool(8)
    table, _ = fill(pool, list(range(100)))
    pool.release(table, list(range(100)))
    _, computed = fill(pool, [*range(90), 7, 7])
    assert computed == 2


def test_a_tail_in_use_is_not_shared():
    pool = PagePool(8)
    first, _ = fill(pool, list(range(100)))
    second, computed = fill(pool, list(range(101)))
    assert (computed, len({*first.pages, *second.pages})) == (101 - 64, 3)


def test_a_page_that_another_cached_page_follows_is_not_taken_over():
    pool = PagePool(8)
    table, _ = fill(pool, list(range(200)))
    pool.release(table, list(range(200)))
    other, computed = fill(pool, [*range(30), 5])
    assert computed == 31
    pool.release(other, [*range(30), 5])
    assert fill(pool, list(range(200)))[1] == 1


def test_the_longest_of_several_tails_is_taken():
    pool = PagePool(8)
    tables = [fill(pool, [*range(64), *tail])[0] for tail in ([1, 1], [1, 2, 3], [1, 2])]
    for table, tail in zip(tables, ([1, 1], [1, 2, 3], [1, 2]), strict=True):
        pool.release(table, [*range(64), *tail])
    assert fill(pool, [*range(64), 1, 2, 3, 4])[1] == 1


def test_a_tail_that_is_known_already_is_not_kept_twice():
    pool = PagePool(3)
    tables = [(fill(pool, tokens)[0], tokens) for tokens in ([9, 9], list(range(30)), list(range(30)))]
    for table, tokens in tables:
        pool.release(table, tokens)
    assert pool.grow(PageTable(), 1)
    assert pool.reuse([9, 9, 9]).cached == 2


def test_pages_idle_longest_are_taken_first_and_the_end_before_the_beginning():
    pool = PagePool(4)
    for start in (0, 1000):
        tokens = list(range(start, start + 128))
        table, _ = fill(pool, tokens)
        pool.release(table, tokens)
    assert pool.grow(PageTable(), PAGE_SLOTS)
    assert pool.reuse([*range(1000, 1128), 1]).cached == 128
    assert pool.reuse([*range(128), 1]).cached == 64


def test_forgetting_leaves_nothing_to_reuse():
    pool = PagePool(4)
    fill(pool, list(range(130)))
    pool.forget()
    assert (pool.available, pool.reuse(list(range(130))).cached) == (4, 0)


def test_common_prefix():
    assert [common_prefix(a, b) for a, b in (("", "x"), ("ab", "abc"), ("abd", "abc"), ("x", "y"))] == [0, 2, 2, 0]


class Pages(RuleBasedStateMachine):
    """No page is lost, none is written by two, and reused pages hold what was asked for."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(10)
        self.slots = [None] * 10 * PAGE_SLOTS  # what a device would hold: each token with everything before it
        self.tables = []

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=4),
        sizes=st.lists(st.integers(1, 150), min_size=4, max_size=4),
    )
    def start(self, tokens, sizes):
        token_ids = [t for t, n in zip(tokens, sizes, strict=False) for _ in range(n)]
        table = self.pool.reuse(token_ids)
        for position in range(table.cached):
            assert self.slot(table, position) == tuple(token_ids[: position + 1])
        self.tables.append((table, token_ids))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), n=st.integers(1, 100))
    def write(self, data, n):
        table, token_ids = data.draw(st.sampled_from(self.tables))
        end = min(table.cached + n, len(token_ids))
        if not self.pool.grow(table, end):
            return
        for position in range(table.cached, end):
            page = table.pages[position // PAGE_SLOTS]
            assert self.pool.holders[page] == 1
            self.slots[page * PAGE_SLOTS + position % PAGE_SLOTS] = tuple(token_ids[: position + 1])
        self.pool.written(table, token_ids, end)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def stop(self, data):
        table, token_ids = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table, token_ids)

    @rule()
    def forget(self):
        self.pool.forget()
        self.tables = []

    @invariant()
    def pages_are_counted(self):
        holders = [0] * 10
        for table, _ in self.tables:
            for page in table.pages:
                holders[page] += 1
        assert self.pool.holders == holders
        assert self.pool.available == holders.count(0)

    @invariant()
    def what_is_known_of_pages_agrees(self):
        self.pool.check()

    @invariant()
    def held_pages_keep_what_was_written(self):
        for table, token_ids in self.tables:
            for position in range(table.cached):
                assert self.slot(table, position) == tuple(token_ids[: position + 1])

    def slot(self, table, position):
        return self.slots[table.pages[position // PAGE_SLOTS] * PAGE_SLOTS + position % PAGE_SLOTS]


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
