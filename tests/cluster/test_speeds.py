"""What is counted as the speed of a stream and of a prompt."""

from __future__ import annotations

import numpy as np
import pytest

from ollama_zmq.cluster.cost_model import PROMPT_TOKENS
from ollama_zmq.cluster.speeds import LEAST_BURST, LatencyWindow, SpeedMeter, forecast, percentiles
from ollama_zmq.cluster.state import TokenSpeeds
from ollama_zmq.engine.pacing import Pacing
from ollama_zmq.engine.requests import Microbatch


def microbatch(number: int, *lengths: int, prompt: int = 0) -> Microbatch:
    n = len(lengths)
    return Microbatch(number, np.zeros(sum(lengths), np.int32), lengths, (0,) * n, ((0,),) * n, (), prompt)


def chunk(number: int, tokens: int) -> Microbatch:
    """Of a prompt."""
    return microbatch(number, tokens, prompt=tokens)


def test_a_stream_is_as_fast_as_its_median_step():
    meter = SpeedMeter()
    for number, step_s in enumerate((0.01, 0.02, 0.5)):
        meter.begin(microbatch(number, 1), now=number)
        meter.end(microbatch(number, 1), now=number + step_s)
    assert meter.speeds().decode_tokens_per_s == pytest.approx(50.0)


@pytest.mark.parametrize("n", [1, 2, 3, 19, 20, 21, 100])
def test_percentiles_are_those_of_the_nearest_rank(n):
    values = np.random.default_rng(n).permutation(n) + 1.0
    found = percentiles(values.tolist())
    assert (found.p50_us, found.p95_us) == tuple(np.percentile(values, (50, 95), method="inverted_cdf"))


@pytest.mark.parametrize("other", [microbatch(1, 1), microbatch(1, 1, 1), chunk(1, 1), chunk(1, 300)])
def test_steps_beside_others_do_not_count(other):
    meter = SpeedMeter()
    meter.begin(microbatch(0, 1), 0.0)
    meter.begin(other, 0.0)
    meter.end(microbatch(0, 1), 0.1)
    meter.begin(microbatch(2, 1), 0.1)
    meter.end(other, 9.0)
    meter.end(microbatch(2, 1), 9.0)
    assert meter.speeds().decode_tokens_per_s == 0.0
    meter.begin(microbatch(3, 1), 10.0)
    meter.end(microbatch(3, 1), 10.1)
    assert meter.speeds().decode_tokens_per_s == pytest.approx(10.0)


def test_drafts_are_no_prompt_and_one_token_of_a_prompt_is_no_stream():
    meter = SpeedMeter()
    for number in range(40):
        meter.begin(microbatch(number, 8), number)
        meter.end(microbatch(number, 8), number + 1.0)
    meter.begin(chunk(41, 1), 41.0)
    meter.end(chunk(41, 1), 42.0)
    assert meter.speeds() == TokenSpeeds(0.0, 0.0)


def test_chunks_that_follow_each_other_are_one_burst():
    meter = SpeedMeter()
    with_a_decode_step = microbatch(1, 256, 1, prompt=256)
    meter.begin(chunk(0, 256), 1.0)
    meter.begin(with_a_decode_step, 1.5)
    meter.end(chunk(0, 256), 2.0)
    meter.end(with_a_decode_step, 3.0)
    assert meter.speeds().prefill_tokens_per_s == pytest.approx(512 / 2.0)


@pytest.mark.parametrize(("tokens", "speed"), [(LEAST_BURST - 1, 0.0), (LEAST_BURST, LEAST_BURST / 2)])
def test_a_burst_counts_from_so_many_tokens_on(tokens, speed):
    meter = SpeedMeter()
    meter.begin(chunk(0, tokens), 0.0)
    meter.end(chunk(0, tokens), 2.0)
    assert meter.speeds().prefill_tokens_per_s == pytest.approx(speed)


def test_short_prompts_do_not_count_and_failed_ones_end_their_burst():
    meter = SpeedMeter()
    meter.begin(chunk(0, 20), 0.0)
    meter.end(chunk(0, 20), 1.0)
    meter.begin(chunk(1, 300), 2.0)
    meter.drop(chunk(1, 300))
    meter.begin(chunk(2, 300), 5.0)
    meter.end(chunk(2, 300), 6.0)
    assert meter.speeds().prefill_tokens_per_s == pytest.approx(300.0)


def test_what_a_worker_says_of_its_time_beyond_the_round_trip_leaves_nothing_for_the_wire():
    window = LatencyWindow()
    window.add(round_trip_us=1.0, compute_us=2.0, queue_us=3.0)
    assert window.summary().wire.p50_us == 0.0


def test_a_chunk_longer_than_the_prompt_is_counted_with_its_own_tokens():
    loop_s = Pacing((), max_tokens=2 * PROMPT_TOKENS).loop_s(1, 1)  # of no stages: for any number of tokens
    assert forecast((), 2 * PROMPT_TOKENS).prefill_tokens_per_s == pytest.approx(2 * PROMPT_TOKENS / loop_s)
