from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.engine.window import cut_prompt, drop_size, fits, head_size, shifted


@pytest.mark.parametrize(
    ("num_keep", "adds_bos", "keep"), [(4, False, 4), (4, True, 5), (0, False, 0), (-1, True, 50), (500, False, 99)]
)
def test_the_head_is_num_keep_and_bos_but_never_the_whole_context(num_keep, adds_bos, keep):
    assert head_size(num_keep, prompt_tokens=50, adds_bos=adds_bos, num_ctx=100) == keep


def test_a_prompt_that_fits_is_left_alone():
    assert cut_prompt(range(15), 4, 16) == list(range(15))


def test_a_long_prompt_keeps_its_head_and_its_end():
    assert cut_prompt(range(16), 4, 16) == [0, 1, 2, 3, 10, 11, 12, 13, 14, 15]  # 16 - (16 - 4) / 2 tokens


def test_a_shift_drops_the_older_half_behind_the_head():
    assert shifted(range(17), 4, 16) == [0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16]


@given(num_ctx=st.integers(2, 200), num_keep=st.integers(-1, 300), length=st.integers(1, 500), bos=st.booleans())
def test_what_is_cut_fits_and_begins_and_ends_as_the_prompt_did(num_ctx, num_keep, length, bos):
    keep = head_size(num_keep, prompt_tokens=length, adds_bos=bos, num_ctx=num_ctx)
    cut = cut_prompt(range(length), keep, num_ctx)
    assert fits(len(cut), num_ctx)
    assert cut[:keep] == list(range(min(keep, len(cut))))
    assert cut[keep:] == list(range(length))[length - len(cut[keep:]) :]


@given(num_ctx=st.integers(2, 200), num_keep=st.integers(0, 300))
def test_a_shift_makes_room_and_keeps_the_newest(num_ctx, num_keep):
    keep = head_size(num_keep, prompt_tokens=num_ctx, adds_bos=False, num_ctx=num_ctx)
    left = shifted(range(num_ctx + 1), keep, num_ctx)
    assert len(left) == num_ctx + 1 - drop_size(keep, num_ctx) <= num_ctx
    assert (left[:keep], left[-1]) == (list(range(keep)), num_ctx)
