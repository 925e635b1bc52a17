from __future__ import annotations

import math

import numpy as np
import pytest

from ollama_zmq.engine.engine import Engine
from ollama_zmq.engine.requests import Finished, RequestFailed, Scored, ScoreRequest, TextChunk
from ollama_zmq.errors import ContextOverflow, OpError, RequestError, ShapeError, StageLost
from tests.engine.fakes import (
    END,
    Driver,
    FakeModel,
    FakeTokenizer,
    V,
    finished,
    generation,
    logits_of,
    naive,
    naive_logits,
    output_ids,
    scripted,
    text_of,
)


def says(*token_ids, prompt_tokens=3, **sizes):
    """A driver whose model answers a prompt of *prompt_tokens* with *token_ids*."""
    driver = Driver(**sizes)
    driver.model = FakeModel(driver.kv_pages, scripted(token_ids, at=prompt_tokens))
    return driver


def same_as_naive(outputs, request, **sizes):
    done = finished(outputs)
    return (text_of(outputs), output_ids(outputs), done.reason) == naive(request, **sizes)


# ---- what is generated


@pytest.mark.parametrize("max_tokens", [1, 7, 64])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_chunks_do_not_change_what_is_generated(max_tokens, temperature):
    request = generation(prompt=range(100), temperature=temperature)
    assert same_as_naive(Driver(max_tokens=max_tokens).run(request), request)


def test_a_seed_means_the_same_text_alone_or_beside_three_others():
    requests = [generation(f"r{i}", prompt=range(i, 70 + 20 * i), seed=7 + i, num_predict=60) for i in range(4)]
    alone = {request.request_id: Driver().run(request) for request in requests}
    driver = Driver(max_sequences=4, max_in_flight=2, max_tokens=16)
    driver.run(*requests)
    for request_id, outputs in alone.items():
        assert text_of(driver.of(request_id)) == text_of(outputs)
        assert finished(driver.of(request_id)).context == finished(outputs).context


def test_another_seed_means_another_text():
    assert text_of(Driver().run(generation(seed=1))) != text_of(Driver().run(generation(seed=2)))


def test_seed_minus_one_is_drawn_from_what_was_injected():
    assert text_of(Driver().run(generation(seed=-1))) == text_of(Driver().run(generation(seed=12345)))


@pytest.mark.parametrize("num_keep", [0, 4, 70, -1])
def test_a_full_context_shifts_and_goes_on(num_keep):
    request = generation(prompt=range(80), num_keep=num_keep, num_predict=400)
    outputs = Driver(num_ctx=128, kv_pages=4).run(request)
    assert len(output_ids(outputs)) > 60
    assert same_as_naive(outputs, request, num_ctx=128)


def test_a_full_context_that_must_not_shift_ends_with_length():
    request = generation(prompt=range(10), num_predict=400, shift=False)
    outputs = says(*range(97, 123), *range(97, 123), num_ctx=32, prompt_tokens=10).run(request)
    done = finished(outputs)
    assert (done.reason, done.prompt_tokens + done.output_tokens) == ("length", 33)


def test_preemption_does_not_change_what_is_generated():
    requests = [generation(f"r{i}", prompt=[i] * 60, seed=i, num_predict=150) for i in range(4)]
    driver = Driver(kv_pages=5, max_sequences=4, max_in_flight=2)
    driver.run(*requests)
    assert [same_as_naive(driver.of(request.request_id), request) for request in requests] == [True] * 4


def test_the_youngest_gives_up_its_pages_to_the_oldest():
    driver = Driver(kv_pages=4, num_ctx=192, max_sequences=3, max_in_flight=1)
    for name, length in {"oldest": 124, "second": 20, "youngest": 40}.items():
        driver.submit(generation(name, range(length), num_predict=100, temperature=0.0))
    driver.send()
    while not driver.engine.waiting:  # until the oldest needs a third page
        driver.land()
        driver.send()
    driver.land()
    before = {name: len(output_ids(driver.of(name))) for name in ("oldest", "second", "youngest")}
    driver.send()
    driver.land()
    more = {name: len(output_ids(driver.of(name))) - n for name, n in before.items()}
    assert more == {"oldest": 1, "second": 1, "youngest": 0}


# ---- how it ends


def test_an_end_token_stops_and_is_not_shown():
    outputs = says(97, 98, END).run(generation())
    assert text_of(outputs) == "ab"
    done = finished(outputs)
    assert (done.reason, done.context, done.output_tokens) == ("stop", (1, 2, 3, 97, 98), 3)


def test_an_end_token_at_once_gives_no_text():
    assert says(END).run(generation()) == [Finished("r", "stop", (1, 2, 3), 3, 1, 2.0, 0.0)]


def test_a_stop_string_across_tokens_is_not_shown():
    outputs = says(97, 258, 259, 260, 98).run(generation(stop=("\n\nUser:",)))
    assert text_of(outputs) == "a"
    done = finished(outputs)
    assert (done.reason, done.context) == ("stop", (1, 2, 3, 97))


@pytest.mark.parametrize("num_predict", [2, 3, 20])
def test_what_was_sampled_behind_a_stop_string_is_not_emitted(num_predict):
    """Text is made when the next step is on its way, and that step may bring a token that nobody will hear of."""
    driver = says(97, 258, 98, 99, 100)
    driver.tells_late = True
    done = finished(driver.run(generation(stop=("\n",), num_predict=num_predict)))
    assert (done.reason, done.context, done.output_tokens) == ("stop", (1, 2, 3, 97), 2)
    assert (driver.engine.running, driver.engine.free_pages) == (0, driver.kv_pages)


@pytest.mark.parametrize("first", [97, END])
def test_a_request_canceled_before_it_was_told_says_so_and_nothing_else(first):
    driver = says(first, END)
    driver.tells_late = True
    driver.submit(generation())
    driver.send()
    driver.land()
    driver.cancel("r")
    driver.drain_outputs()
    assert [type(output) for output in driver.outputs] == [RequestFailed]
    assert driver.engine.free_pages == driver.kv_pages


def test_a_character_split_over_tokens_comes_whole():
    outputs = says(*"é€😀".encode(), END).run(generation())
    assert [output.text for output in outputs if isinstance(output, TextChunk)] == ["é", "€", "😀"]


@pytest.mark.parametrize(("num_predict", "output_tokens"), [(1, 1), (5, 5), (-1, 640), (0, 1), (10**9, 640)])
def test_num_predict_bounds_the_output_by_ten_contexts_at_most(num_predict, output_tokens):
    driver = says(*[97, 98] * 2000, num_ctx=64)
    driver.model.logits_of = lambda values: naive_alternation(len(values))
    done = finished(driver.run(generation(num_predict=num_predict)))
    assert (done.reason, done.output_tokens) == ("length", output_tokens)


def naive_alternation(length):
    logits = np.zeros(V, np.float32)
    logits[97 + length % 2] = 20
    return logits


def test_the_same_token_more_than_thirty_times_in_a_row_ends_with_length():
    done = finished(says(98, *[97] * 100).run(generation(num_predict=-1)))
    assert (done.reason, done.output_tokens) == ("length", 32)


def test_a_token_thirty_times_in_a_row_is_fine():
    done = finished(says(*[97] * 30, *[98] * 30, END).run(generation(num_predict=-1)))
    assert (done.reason, done.output_tokens) == ("stop", 61)


def test_prompt_tokens_are_no_repetition():
    done = finished(says(97, 97, END, prompt_tokens=30).run(generation(prompt=[97] * 30)))
    assert (done.reason, done.output_tokens) == ("stop", 3)


def test_times_run_from_admission_to_the_first_and_to_the_last_token():
    driver = says(97, 98, 99, END, max_tokens=2)
    driver.now = 100.0
    done = finished(driver.run(generation()))
    assert (done.prefill_s, done.decode_s) == (4.0, 6.0)  # two microbatches, then three, of two seconds each


def test_one_token_has_a_duration_too():
    """Until its text was made, so that a rate can be told of it."""
    driver = says(97, END)
    driver.submit(generation(num_predict=1))
    driver.tells_late = True
    driver.send()
    driver.land()
    driver.now += 0.25
    driver.drain_outputs()
    done = finished(driver.outputs)
    assert (done.output_tokens, done.reason, done.decode_s) == (1, "length", 0.25)


# ---- log-probabilities


def test_logprobs_are_those_of_the_raw_logits():
    request = generation(logprobs=True, top_logprobs=2, temperature=0.0, repeat_penalty=1.8, num_predict=3)
    entries = [entry for output in Driver().run(request) if isinstance(output, TextChunk) for entry in output.logprobs]
    logits = naive_logits([1, 2, 3]).astype(np.float64)
    shares = logits - math.log(np.exp(logits).sum())
    best = np.argsort(-logits)[:2]
    assert len(entries) == 3
    assert entries[0].logprob == pytest.approx(shares[best[0]], abs=1e-5)
    assert [entry.logprob for entry in entries[0].top] == pytest.approx(shares[best].tolist(), abs=1e-5)
    assert [entry.data for entry in entries[0].top] == [FakeTokenizer().piece(int(i)) for i in best]


def test_no_logprobs_unless_asked():
    assert all(output.logprobs == () for output in Driver().run(generation()) if isinstance(output, TextChunk))


# ---- prompts


def test_a_long_prompt_is_cut_as_ollama_cuts_it():
    request = generation(prompt=range(200), num_keep=5, num_predict=10)
    outputs = Driver(num_ctx=64).run(request)
    assert same_as_naive(outputs, request, num_ctx=64)
    assert finished(outputs).prompt_tokens == 64 - (64 - 5) // 2
    assert finished(outputs).context[:200] == tuple(range(200))


@pytest.mark.parametrize("off", ["truncate", "shift"])
def test_a_long_prompt_that_must_not_be_cut_is_refused_with_both_numbers(off):
    (broken,) = Driver(num_ctx=64).run(generation(prompt=range(64), **{off: False}))
    assert isinstance(broken.error, ContextOverflow)
    assert broken.error.message == (
        "prompt of 64 tokens does not fit num_ctx=64, which takes 63: "
        "raise num_ctx to 65 or more, shorten the prompt, or allow truncate and shift"
    )


def test_a_prompt_that_just_fits_is_not_cut():
    done = finished(Driver(num_ctx=64).run(generation(prompt=range(63), truncate=False, shift=False)))
    assert done.prompt_tokens == 63


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (generation(prompt=()), "token_ids is empty: there must be at least one token to go on from"),
        (generation(prompt=(1, V)), f"token_ids[1]={V}: the vocabulary has {V}"),
        (generation(prompt=(1, 2, -1)), f"token_ids[2]=-1: the vocabulary has {V}"),
        (ScoreRequest("r", ()), "token_ids is empty: there must be at least one token to go on from"),
        (ScoreRequest("r", (1,), chunk=0), "chunk=0: starts at 1"),
        (ScoreRequest("r", (1,) * 300), "300 tokens do not fit num_ctx=256: raise num_ctx to 300"),
    ],
)
def test_what_cannot_be_is_refused_and_named(request_, message):
    driver = Driver()
    (broken,) = driver.run(request_)
    assert isinstance(broken.error, RequestError)
    assert (broken.error.message, driver.engine.waiting, driver.engine.running) == (message, 0, 0)


def test_an_id_in_use_is_refused_without_touching_its_owner():
    driver = Driver()
    driver.submit(generation())
    with pytest.raises(OpError, match="request_id='r' is in use"):
        driver.submit(generation())
    assert finished(driver.run()).request_id == "r"


# ---- reuse


def test_a_second_turn_prefills_only_what_is_new():
    driver = Driver()
    first = finished(driver.run(generation("a", prompt=range(100), num_predict=30)))
    driver.model.tokens_run = 0
    request = generation("b", prompt=(*first.context, 5, 6, 7), num_predict=1)
    assert same_as_naive(driver.run(request), request)
    assert driver.model.tokens_run == 3 + 1  # the last token of the first turn was never run


def test_the_same_prompt_again_prefills_one_token():
    driver = Driver()
    driver.run(generation("a", prompt=range(128), num_predict=1))
    driver.model.tokens_run = 0
    driver.run(generation("b", prompt=range(128), num_predict=1))
    assert driver.model.tokens_run == 1


def test_a_running_prompt_is_shared_page_by_page():
    driver = Driver(max_sequences=2, max_tokens=256)
    driver.submit(generation("a", prompt=range(200), num_predict=50))
    driver.send()
    driver.land()
    driver.model.tokens_run = 0
    request = generation("b", prompt=(*range(150), 3), num_predict=1)
    driver.submit(request)
    driver.send()
    driver.land()
    assert driver.model.tokens_run == 1 + 151 - 128
    assert same_as_naive(driver.of("b"), request)


# ---- several at once


def test_by_default_requests_run_one_after_another():
    driver = Driver()
    driver.submit(generation("a"))
    driver.submit(generation("b"))
    driver.send()
    assert (driver.engine.running, driver.engine.waiting) == (1, 1)
    ids = [output.request_id for output in driver.run()]
    assert ids == sorted(ids)


def test_decodes_of_all_share_a_microbatch_with_a_prefill():
    driver = Driver(max_sequences=3, max_tokens=32)
    for name in "ab":
        driver.submit(generation(name, prompt=(1, 2)))
    driver.send()
    driver.land()
    driver.submit(generation("c", prompt=range(100)))
    assert driver.send().lengths == (1, 1, 30)


def test_a_sequence_that_decodes_is_in_one_microbatch_at_a_time():
    driver = decoding("abcd", max_sequences=4, max_in_flight=3)
    sent = [driver.send(), driver.send()]
    assert driver.send() is None
    pages = [page for microbatch in sent for table in microbatch.pages for page in table]
    assert len(pages) == len(set(pages)) == 4


def test_prompts_that_came_together_end_one_after_another():
    driver = Driver(max_sequences=3, max_tokens=8)
    for n, name in enumerate("abc"):
        driver.submit(generation(name, prompt=[n] * 16, num_predict=1))
    sent = [driver.send(), driver.land(), driver.send(), driver.land(), driver.send()]
    assert [microbatch.token_ids[0] for microbatch in sent[::2]] == [0, 0, 1]


def test_a_short_prompt_waits_for_a_turn_of_a_long_one_and_not_for_its_end():
    driver = Driver(num_ctx=1024, kv_pages=64, max_sequences=3, max_tokens=128)
    for name, length in (("long", 1000), ("longer", 1001), ("short", 20)):
        driver.submit(generation(name, prompt=[length % 100] * length, num_predict=1))
    turns = []
    while not driver.of("short"):
        turns += driver.send().token_ids.tolist()
        driver.land()
    assert (turns.count(0), turns.count(1), turns.count(20)) == (256 + 108, 256, 20)


def test_groups_follow_each_other_through_the_stages():
    driver = decoding("abcd", max_sequences=4, max_in_flight=2)
    assert [len(driver.send().lengths), len(driver.send().lengths)] == [2, 2]


def test_prompts_that_arrive_together_share_the_pages_of_their_common_beginning():
    """The second is begun when the first has filled them, and no token of them is computed twice."""
    requests = [generation(name, prompt=[*range(200), n], num_predict=1) for n, name in enumerate("abc")]
    driver = Driver(max_sequences=4, max_tokens=32, max_in_flight=4)
    driver.run(*requests)
    assert driver.model.tokens_run == 201 + 2 * (201 - 192)
    assert [same_as_naive(driver.of(request.request_id), request) for request in requests] == [True] * 3


def test_a_prompt_does_not_wait_for_one_that_was_canceled():
    first, second = (generation(name, prompt=range(200), num_predict=1) for name in "ab")
    driver = Driver(max_sequences=2, max_tokens=32)
    driver.submit(first)
    driver.submit(second)
    driver.send()
    driver.cancel("a")
    driver.land()
    assert same_as_naive(driver.run(), second)


def test_chunks_of_one_prompt_follow_each_other_through_the_stages():
    driver = Driver(max_tokens=32, max_in_flight=3)
    driver.submit(generation(prompt=range(200)))
    assert [driver.send().positions[0] for _ in range(3)] == [0, 32, 64]
    assert driver.send() is None


def test_a_chunk_without_wanted_rows_may_come_back_before_an_older_one_that_the_head_works_on():
    driver = Driver(max_sequences=2, max_tokens=16, max_in_flight=2)
    short, long = generation("short"), generation("long", range(3, 53))
    driver.submit(short)
    driver.send()
    driver.land()
    driver.submit(long)
    older, younger = driver.send(), driver.send()
    assert (older.lengths, older.rows, younger.lengths, younger.rows) == ((1, 15), (0,), (16,), ())
    driver.land(1)
    driver.land(0)
    before = list(driver.outputs)
    after = driver.run()
    said = {name: [output for output in (*before, *after) if output.request_id == name] for name in ("short", "long")}
    assert same_as_naive(said["short"], short)
    assert same_as_naive(said["long"], long)


def test_a_client_that_leaves_gives_back_its_pages_when_what_is_in_flight_has_landed():
    driver = Driver(max_tokens=32, max_in_flight=3)
    driver.submit(generation(prompt=range(200)))
    for _ in range(3):
        driver.send()
    driver.cancel("r")
    assert driver.engine.next_microbatch(0.0) is None
    for _ in range(3):
        driver.land()
    assert driver.engine.free_pages == driver.kv_pages


def test_a_prompt_whose_pages_others_hold_needs_no_room_for_them():
    """Five pages, of which each request needs four: three are the same."""
    requests = [generation(name, prompt=[*range(200), n], num_predict=10) for n, name in enumerate("ab")]
    driver = Driver(kv_pages=5, max_tokens=256, max_sequences=2)
    driver.submit(requests[0])
    driver.send()
    driver.land()
    driver.submit(requests[1])
    driver.send()
    assert (driver.engine.running, driver.engine.waiting) == (2, 0)


def decoding(names, **sizes):
    """A driver in which a sequence of each name is about to decode."""
    driver = says(*[97, 98, 99] * 40, prompt_tokens=1, **sizes)
    for name in names:
        driver.submit(generation(name, prompt=(1,), num_predict=100))
    driver.send()
    driver.land()
    return driver


def test_a_prefill_is_not_starved_by_more_decodes_than_fit():
    driver = decoding("abc", max_sequences=4, max_tokens=3)
    driver.submit(generation("d", prompt=range(9)))
    assert driver.send().positions == (1, 1, 0)


def test_decodes_take_turns_when_not_all_fit():
    driver = decoding("ab", max_sequences=3, max_tokens=2)
    driver.submit(generation("c", prompt=(1,), num_predict=100))
    for _ in range(12):
        driver.send()
        driver.land()
    counts = [len(output_ids(driver.of(name))) for name in "abc"]
    assert sum(counts) == 2 + 24
    assert max(counts) - min(counts) <= 2


def test_a_prompt_waits_until_there_are_pages_for_it():
    driver = Driver(max_sequences=2, num_ctx=256, kv_pages=4, max_tokens=64)
    driver.submit(generation("a", prompt=range(150)))
    driver.submit(generation("b", prompt=range(150, 250)))
    driver.send()
    assert (driver.engine.running, driver.engine.waiting) == (1, 1)
    driver.run()
    assert finished(driver.of("b")).prompt_tokens == 100


def test_one_that_lacks_pages_does_not_hold_up_the_others():
    """The younger cannot go on before the older, which holds two of three pages, is done; it is the younger's turn."""
    driver = says(*[97, 98] * 200, prompt_tokens=70, max_sequences=2, max_in_flight=2, num_ctx=128, kv_pages=3)
    driver.run(
        generation("a", prompt=range(70), num_predict=50), generation("b", prompt=range(60), num_predict=50, seed=3)
    )
    assert [finished(driver.of(name)).output_tokens for name in "ab"] == [50, 50]


def test_one_that_lacks_pages_does_not_hold_up_another_that_is_behind_it():
    driver = Driver(num_ctx=128, kv_pages=3, max_sequences=2, max_tokens=1, max_in_flight=1)
    requests = [generation("old", range(100), num_predict=60), generation("young", range(50, 110), num_predict=60)]
    driver.run(*requests)
    for request in requests:
        assert output_ids(driver.of(request.request_id)) == naive(request, num_ctx=128)[1]


@pytest.mark.parametrize("length", range(30, 45))
def test_a_shift_and_a_new_page_in_the_same_microbatch_do_not_collide(length):
    older = generation("a", prompt=range(100), num_predict=60, num_keep=0, seed=11)
    younger = generation("b", prompt=range(200, 200 + length), num_predict=60, seed=5)
    driver = Driver(max_sequences=2, max_tokens=256, num_ctx=128, kv_pages=3)
    driver.run(older, younger)
    assert same_as_naive(driver.of("a"), older, num_ctx=128)
    assert same_as_naive(driver.of("b"), younger, num_ctx=128)


# ---- cancel, fail, restart


@pytest.mark.parametrize("sent", [0, 1, 5])
def test_cancel_frees_all_pages(sent):
    driver = Driver(max_tokens=16)
    driver.submit(generation(prompt=range(100)))
    for _ in range(sent):
        driver.send()
        driver.land()
    driver.cancel("r")
    assert driver.outputs[-1].error.message == "request canceled"
    assert (driver.engine.free_pages, driver.engine.running, driver.engine.waiting) == (64, 0, 0)
    assert driver.send() is None


def test_a_canceled_microbatch_runs_out_unheard_before_its_pages_are_free():
    driver = Driver()
    driver.submit(generation(prompt=range(60)))
    driver.send()
    driver.cancel("r")
    driver.outputs = []
    assert (driver.engine.running, driver.engine.free_pages) == (0, 63)
    driver.land()
    assert (driver.outputs, driver.engine.free_pages) == ([], 64)


def test_cancel_of_an_unknown_request_says_nothing():
    assert Driver().engine.cancel("nobody") == []


def test_failure_ends_every_request_and_forgets_the_pages():
    driver = Driver()
    driver.submit(generation("a", prompt=range(100)))
    driver.submit(generation("b"))
    microbatch = driver.send()
    error = StageLost("worker 10.0.0.1:50052 is gone")
    assert driver.engine.fail(error) == [RequestFailed("a", error), RequestFailed("b", error)]
    assert (driver.engine.free_pages, driver.engine.in_flight) == (64, 0)
    driver.engine.complete(microbatch.id, np.zeros((0, V), np.float32), 2.0)
    assert driver.engine.drain_outputs(2.0) == []
    driver.flying.clear()
    driver.model.slots = FakeModel(64).slots
    request = generation("c", prompt=range(100))
    assert same_as_naive(driver.run(request), request)


# ---- logits that come back


def test_logits_that_are_no_numbers_break_their_request_only():
    def broken(values):
        logits = logits_of(values)
        if len(values) == 50:
            logits[7] = np.nan
        return logits

    driver = Driver(max_sequences=2)
    driver.model.logits_of = broken
    driver.run(generation("a", prompt=range(50)), generation("b", prompt=(1, 2)))
    (ended,) = driver.of("a")
    assert isinstance(ended.error, OpError)
    assert ended.error.message == "request 'a', position 49: logits[7]=nan: not a number to sample from"
    assert finished(driver.of("b")).output_tokens > 0
    assert driver.engine.free_pages == 64


@pytest.mark.parametrize("logits", [np.zeros((2, V), np.float32), np.zeros((1, V - 1), np.float32), np.zeros((1, V))])
def test_logits_of_another_shape_are_refused_and_change_nothing(logits):
    driver = Driver()
    driver.submit(generation())
    microbatch = driver.send()
    with pytest.raises(ShapeError, match=rf"expected float32 \(1, {V}\)"):
        driver.engine.complete(microbatch.id, logits, 1.0)
    assert finished(driver.run())


def test_a_token_beyond_the_tokenizer_is_never_sampled():
    driver = Driver()
    driver.engine.tokenizer.vocab_size = 200
    driver.model.logits_of = lambda values: np.arange(V, dtype=np.float32)
    outputs = driver.run(generation(temperature=0.0, num_predict=2))
    assert output_ids(outputs) == (199, 199)


# ---- scoring


def scores(token_ids):
    return np.stack([naive_logits(token_ids[: i + 1]) for i in range(len(token_ids))])


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_scores_are_the_logits_of_every_position(chunk):
    driver = Driver()
    driver.run(generation("warm", prompt=range(150)))
    (scored,) = driver.run(ScoreRequest("s", tuple(range(150)), chunk))
    assert isinstance(scored, Scored)
    assert (scored.logits == scores(range(150))).all()


def test_a_whole_context_can_be_scored():
    (scored,) = Driver(num_ctx=64, kv_pages=1).run(ScoreRequest("s", tuple(range(64))))
    assert scored.logits.shape == (64, V)


# ---- sizes


@pytest.mark.parametrize("wrong", [{"kv_pages": 3}, {"num_ctx": 1}, {"max_tokens": 0}, {"max_sequences": 0}])
def test_sizes_with_which_nothing_runs_are_refused(wrong):
    sizes = {"vocab_size": V, "num_ctx": 256, "kv_pages": 4, "max_tokens": 8} | wrong
    with pytest.raises(OpError):
        Engine(tokenizer=FakeTokenizer(), **sizes)


@pytest.mark.parametrize("max_rows", [1, 5, 64])
def test_scores_come_in_no_more_rows_than_were_planned_for(max_rows):
    driver = Driver(max_rows=max_rows)
    (scored,) = driver.run(ScoreRequest("s", tuple(range(150)), 64))
    assert (scored.logits == scores(range(150))).all()


def test_a_microbatch_tells_how_much_of_it_is_prompt():
    """Whoever measures speeds takes prompts and decoding apart."""
    driver = says(97, 98, END, prompt_tokens=4, max_tokens=2)
    driver.submit(generation(prompt=range(4)))
    steps = []
    for _ in range(3):
        steps.append(driver.send())
        driver.land()
    assert [(step.prompt_tokens, step.is_decode) for step in steps] == [(2, False), (2, False), (0, True)]
