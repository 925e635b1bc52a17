"""A draft changes when a token comes, never which; and it is made only where it pays."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_zmq.engine.costs import Line
from ollama_zmq.engine.drafts import SIZES, expected_tokens
from ollama_zmq.engine.pacing import Pacing, StageCost
from ollama_zmq.engine.prompt_lookup import AcceptanceRate, PromptLookup
from ollama_zmq.engine.requests import TextChunk
from tests.engine.fakes import (
    END,
    Driver,
    FakeModel,
    Oracle,
    finished,
    generation,
    naive,
    output_ids,
    scripted,
    text_of,
)

LOOP = [10, 20, 30, 40, 50, 60, 70]


class Always:
    """A drafter that says the same, right or wrong."""

    def __init__(self, *token_ids):
        self.token_ids = token_ids

    def draft(self, sequence, most, decoding):
        return self.token_ids[:most]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 99),
    wrong=st.sampled_from([0.0, 0.2, 1.0]),
    temperature=st.sampled_from([0.0, 0.8]),
    num_predict=st.sampled_from([1, 2, 30, 150]),
    stop=st.sampled_from([(), ("a",), ("bc", "the")]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    max_rows=st.sampled_from([4, 9, None]),
    num_ctx=st.sampled_from([64, 100, 256]),
    shift=st.booleans(),
)
def test_a_draft_does_not_change_what_is_generated(
    seed, wrong, temperature, num_predict, stop, repeat_penalty, max_rows, num_ctx, shift
):
    options = {"temperature": temperature, "num_predict": num_predict, "stop": stop, "repeat_penalty": repeat_penalty}
    request = generation(seed=seed, shift=shift, **options)
    oracle = Oracle(seed, num_ctx=num_ctx, wrong=wrong)
    driver = Driver(num_ctx=num_ctx, kv_pages=4, max_rows=max_rows, drafter=oracle)
    outputs = driver.run(request)
    assert (text_of(outputs), output_ids(outputs), finished(outputs).reason) == naive(request, num_ctx=num_ctx)
    assert driver.engine.free_pages == 4


def test_a_right_draft_brings_several_tokens_in_one_pass():
    request = generation(num_predict=64)
    driver = Driver(drafter=Oracle(1, wrong=0.0))
    done = finished(driver.run(request))
    passes = driver.now / 2  # the clock counts what is sent and what lands
    assert passes < done.output_tokens
    assert done.accepted == done.output_tokens - passes


class Knows:
    """A drafter that says *k* tokens, of which the first *right* are what *request* will say."""

    def __init__(self, request, k, right):
        self.said, self.k, self.right = naive(request)[1], k, right

    def draft(self, sequence, most, decoding):
        at = sequence.output_tokens
        wrong = [(token_id + 1) % END for token_id in self.said[at + self.right : at + self.k]]
        return (*self.said[at : at + self.right], *wrong)[:most]


@pytest.mark.parametrize(("k", "right"), [(0, 0), (1, 0), (1, 1), (3, 2), (3, 3), (7, 1), (15, 14), (15, 15)])
def test_a_pass_brings_every_token_that_was_guessed_right_and_one_more(k, right):
    request = generation(num_predict=60, seed=4, prompt=range(9))
    driver = Driver(drafter=Knows(request, k, right))
    done = finished(driver.run(request))
    assert done.output_tokens == 60
    assert driver.now / 2 == 1 + math.ceil(59 / (right + 1))  # the clock counts what is sent and what lands


def test_logprobs_of_a_draft_are_those_of_plain_decoding():
    request = generation(num_predict=40, logprobs=True, top_logprobs=2)
    plain, drafted = Driver().run(request), Driver(drafter=Oracle(3)).run(request)
    assert logprobs(plain) == logprobs(drafted)


def logprobs(outputs):
    return [entry for output in outputs if isinstance(output, TextChunk) for entry in output.logprobs]


def test_nothing_follows_an_end_token_however_far_the_draft_goes():
    driver = Driver(model=FakeModel(64, scripted([97, END, 98, 98], at=3)), drafter=Always(END, 98, 98))
    outputs = driver.run(generation(num_predict=50))
    assert (text_of(outputs), finished(outputs).reason) == ("a", "stop")


def test_what_was_guessed_wrong_is_never_taken_for_content():
    """The wrong guess fills a page; a prompt that says the same must not be given that page."""
    prompt = (1,) * 62
    first = generation("first", prompt, num_predict=9, temperature=0.0)
    said = naive(first)[1]
    driver = Driver(drafter=Always(7, 7, 7, 7))
    driver.run(first)
    assert said[1] != 7
    second = generation("second", (*prompt, said[0], 7, 7, 7, 7), temperature=0.0)
    assert output_ids(driver.run(second)) == naive(second)[1]


def test_a_draft_takes_no_page_from_another_sequence():
    driver = Driver(num_ctx=64, kv_pages=2, max_sequences=2, drafter=Always(*range(40)))
    requests = [generation(name, (i, 2, 3), num_predict=55) for i, name in enumerate("ab")]
    driver.run(*requests)
    for request in requests:
        assert output_ids(driver.of(request.request_id)) == naive(request, num_ctx=64)[1]


def guess_after(history, most):
    lookup = PromptLookup(history)
    lookup.learn()
    return lookup.guess(most)[0]


def test_a_draft_is_what_followed_when_the_same_was_said_before():
    assert guess_after([1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3, 4], 3) == [5, 6, 7]
    assert guess_after([1, 2, 3, 4, 5, 6, 7, 9, 8, 8, 6, 7], 2) == [9, 8]
    assert guess_after([1, 2, 3, 4, 5, 6, 7, 9, 8, 8, 0], 2) == []
    assert guess_after([1], 2) == []


def test_the_latest_place_counts_and_what_repeats_itself_goes_on_repeating():
    assert guess_after([1, 2, 5, 1, 2, 6, 1, 2, 6, 1, 2], 7) == [6, 1, 2, 6, 1, 2, 6]


def test_what_would_have_been_guessed_is_compared_with_what_was_said():
    history = LOOP + LOOP[:4]
    lookup, likely = PromptLookup(history), []
    for said in (50, 60, 70, 99):
        lookup.learn()
        likely.append(lookup.guess(5)[1])
        history.append(said)
    lookup.learn()
    assert 0.0 == likely[0] < likely[1] < likely[2] < likely[3]
    assert lookup.rates[3].value < likely[3]


def test_behind_a_token_that_was_changed_the_draft_goes_on_where_it_was():
    history = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]
    lookup = PromptLookup(history)
    lookup.learn()
    assert lookup.guess(3)[0] == [4, 5, 6]
    history += [4, 99]
    lookup.learn()
    assert lookup.guess(3)[0] == [6, 7, 8]


def test_of_several_places_the_one_counts_before_which_most_is_the_same():
    alike, other = [9, 8, 7, 1, 2, 3], [6, 6, 6, 1, 2, 3]
    assert guess_after([*alike, 4, 4, *other, 5, 5, *alike], 2) == [4, 4]
    assert guess_after([*other, 4, 4, *other, 5, 5, *other], 2) == [5, 5]


def test_a_token_that_was_changed_is_changed_in_what_follows_until_it_is_not():
    history = [1, 2, 3, 50, 5, 6, 7, 50, 9, 10, 11, 50, 13, 14, 1, 2, 3]
    lookup = PromptLookup(history)

    def after(*said, guessed):
        lookup.learn()
        assert lookup.guess(4)[0] == guessed
        history.extend(said)

    after(60, guessed=[50, 5, 6, 7])
    after(5, guessed=[5, 6, 7, 50])
    after(6, 7, 60, guessed=[6, 7, 60, 9])
    after(9, 10, 11, 50, guessed=[9, 10, 11, 60])
    after(9, 10, 11, guessed=[13, 14, 1, 2])
    after(guessed=[50, 13, 14, 1])


@given(st.lists(st.booleans(), max_size=200))
def test_a_rate_is_a_share_that_follows_what_was_right_lately(rights):
    rate = AcceptanceRate()
    for right in rights:
        before = rate.value
        rate.add(right)
        assert before <= rate.value <= 1.0 if right else 0.0 <= rate.value <= before


def pacing(row_s, fixed_s=0.01):
    return Pacing([StageCost("w", Line(fixed_s, row_s), Line(0.0, 0.0))], max_tokens=64)


def loops(text_repeats, stages, **sizes):
    """What an engine drafts while the model says the same seven tokens again and again."""
    model = FakeModel(64, scripted(LOOP * 40, at=3))
    driver = Driver(model=model, stages=stages, speculate=True, num_ctx=512, kv_pages=64, **sizes)
    driver.times = lambda microbatch: ()  # the expected costs are believed
    return finished(driver.run(generation(num_predict=text_repeats * len(LOOP), temperature=0.0)))


def test_a_text_that_repeats_itself_is_drafted_where_rows_cost_nothing():
    done = loops(30, (StageCost("w", Line(0.01, 0.0), Line(0.02, 0.0)),))
    assert done.accepted > 0.7 * done.output_tokens


def test_nothing_is_drafted_where_every_row_costs_as_much_as_a_pass():
    assert loops(30, (StageCost("w", Line(0.0, 0.01), Line(0.0, 0.0)),)).drafted == 0


def test_nothing_is_drafted_until_guesses_have_been_right():
    driver = Driver(stages=(StageCost("w", Line(0.01, 0.0), Line(0.02, 0.0)),), speculate=True)
    driver.times = lambda microbatch: ()
    done = finished(driver.run(generation(num_predict=200, prompt=range(1, 100), temperature=0.8)))
    assert done.drafted < 0.1 * done.output_tokens


def test_many_sequences_that_fill_the_stages_leave_no_room_for_drafts():
    busy = pacing(row_s=0.002)
    assert busy.slowdown(16, 4) > 2 * busy.slowdown(1, 4)


@pytest.mark.parametrize("right", [0.0, 0.5, 1.0])
def test_a_pass_brings_the_geometric_sum(right):
    for k in SIZES:
        expected = k + 1 if right == 1.0 else (1 - right ** (k + 1)) / (1 - right)
        assert expected_tokens(right, k) == pytest.approx(expected)


def test_a_draft_is_neither_prompt_nor_a_step_of_one_token():
    driver = Driver(drafter=Always(7, 7, 7, 7))
    driver.submit(generation(num_predict=20))
    driver.send()
    driver.land()
    drafted = driver.send()
    assert (len(drafted.token_ids), drafted.prompt_tokens, drafted.is_decode) == (5, 0, False)


def test_the_first_tokens_of_all_are_known_as_well():
    lookup = PromptLookup([5, 9, 5])
    lookup.learn()
    assert lookup.guess(1)[0] == [9]


def test_nothing_is_guessed_behind_the_last_token_that_was_asked_for():
    driver = Driver(drafter=Always(1, 2, 3))
    assert finished(driver.run(generation(num_predict=2))).drafted == 0
