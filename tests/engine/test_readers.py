"""A reader that is too far behind pauses its request: nothing grows, nobody else waits, and the text is the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.engine.requests import RequestFailed, TextChunk
from ollama_zmq.errors import StageLost
from tests.engine.fakes import Driver, Oracle, finished, generation, naive, output_ids, text_of


def pieces_of(driver, request_id="r"):
    return [output for output in driver.of(request_id) if isinstance(output, TextChunk)]


def paused(**sizes):
    """A driver with one request, of which three pieces have been said and none read."""
    driver = Driver(**sizes)
    driver.run(generation(num_predict=20, read_ahead=3))
    assert len(pieces_of(driver)) == 3
    return driver


def go_on(driver):
    """As ``run``, but keep the outputs there are."""
    earlier = driver.outputs
    driver.outputs = [*earlier, *driver.run()]


def read_to_the_end(driver, request, batch=1):
    """Read *batch* pieces at a time until the request is done."""
    while driver.engine.running + driver.engine.waiting:
        driver.engine.read(request.request_id, batch)
        go_on(driver)


def test_a_request_that_nobody_reads_pauses_and_holds_nothing():
    driver = paused()
    assert driver.send() is None
    assert (driver.engine.running, driver.engine.waiting, driver.engine.free_pages) == (0, 1, driver.kv_pages)


@given(read_ahead=st.integers(1, 8), temperature=st.sampled_from([0.0, 0.8]), oracle=st.none() | st.integers(0, 9))
def test_a_request_that_pauses_says_the_same(read_ahead, temperature, oracle):
    request = generation(num_predict=30, read_ahead=read_ahead, temperature=temperature)
    driver = Driver(drafter=None if oracle is None else Oracle(oracle))
    driver.submit(request)
    go_on(driver)
    read_to_the_end(driver, request, batch=max(read_ahead // 4, 1))
    outputs = driver.of("r")
    assert (text_of(outputs), output_ids(outputs), finished(outputs).reason) == naive(request)


def test_it_goes_on_by_as_much_as_was_read_and_computes_one_token_for_each():
    driver = paused()
    driver.model.tokens_run = 0
    driver.engine.read("r", 2)
    go_on(driver)
    assert (len(pieces_of(driver)), driver.model.tokens_run) == (5, 2)


def test_a_reader_that_keeps_up_never_pauses():
    request = generation(num_predict=20, read_ahead=3)
    driver, known = Driver(), 0
    driver.submit(request)
    while driver.send() is not None:
        driver.land()
        said = len(pieces_of(driver))
        driver.engine.read("r", said - known)
        known = said
    assert text_of(driver.outputs) == naive(request)[0]


def test_who_never_says_what_it_has_read_is_never_paused():
    request = generation(num_predict=200)
    assert text_of(Driver().run(request)) == naive(request)[0]


def test_others_take_the_place_and_the_pages_of_one_that_is_paused():
    driver = Driver(num_ctx=128, kv_pages=2, max_sequences=1)
    slow = generation("slow", prompt=range(70), num_predict=40, read_ahead=5)
    others = [generation(name, prompt=(i, *range(90)), num_predict=20) for i, name in enumerate("abc")]
    driver.run(slow, *others)
    for request in others:
        assert text_of(driver.of(request.request_id)) == naive(request, num_ctx=128)[0]
    read_to_the_end(driver, slow)  # its pages were taken: it is prefilled again
    assert text_of(driver.of("slow")) == naive(slow, num_ctx=128)[0]


def test_one_that_is_paused_takes_no_part_in_the_microbatches_of_others():
    driver = Driver(max_sequences=2)
    driver.run(generation("slow", prompt=(1, 2), num_predict=40, read_ahead=1))
    driver.submit(generation("other", prompt=(3, 4), num_predict=30))
    lengths = []
    while (microbatch := driver.send()) is not None:
        lengths.append(microbatch.lengths)
        driver.land()
    assert lengths[0] == (2,)
    assert set(lengths[1:]) == {(1,)}


def test_cancel_while_it_is_paused_ends_it():
    driver = paused()
    driver.cancel("r")
    assert isinstance(driver.outputs[-1], RequestFailed)
    assert (driver.engine.running, driver.engine.waiting, driver.engine.free_pages) == (0, 0, driver.kv_pages)
    driver.engine.read("r", 3)
    assert driver.send() is None


def test_a_lost_stage_ends_one_that_is_paused():
    driver = paused()
    error = StageLost("gone")
    assert driver.engine.fail(error) == [RequestFailed("r", error)]
