"""The engine under any order of events says what the plainest loop says, and loses no page."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ollama_zmq.engine.costs import Line
from ollama_zmq.engine.pacing import StageCost
from ollama_zmq.engine.requests import RequestFailed, TextChunk
from tests.engine.fakes import Driver, Oracle, finished, generation, naive, output_ids, text_of

NUM_CTX = 128
MOST_DRAFTED = 16
STAGES = tuple(StageCost(place, Line(1e-3, 1e-3), Line(1e-2, 0.0)) for place in "abb")
prompts = st.lists(
    st.tuples(st.sampled_from([1, 2, 97]), st.integers(1, 90)), min_size=1, max_size=3
)  # few beginnings, so that prompts share them


class Requests(RuleBasedStateMachine):
    @initialize(
        max_sequences=st.integers(1, 4),
        max_in_flight=st.integers(0, 3),
        max_tokens=st.sampled_from([1, 5, 64, 300]),
        max_rows=st.sampled_from([4, 9, None]),
        kv_pages=st.sampled_from([2, 3, 5, 9]),
        drafter=st.none() | st.builds(Oracle, st.integers(0, 9), num_ctx=st.just(NUM_CTX)),
        tells_late=st.booleans(),
    )
    def load(self, *, tells_late, **sizes):
        self.driver = Driver(num_ctx=NUM_CTX, stages=STAGES, **sizes)
        self.driver.tells_late = tells_late
        self.kv_pages = sizes["kv_pages"]
        self.requests = {}
        self.read = Counter()
        self.canceled = set()

    @rule(
        prompt=prompts,
        seed=st.integers(0, 3),
        num_predict=st.sampled_from([1, 3, 40, 100]),
        num_keep=st.sampled_from([0, 4, 100, -1]),
        shift=st.booleans(),
        stop=st.sampled_from([(), ("a",), ("bc", "the")]),
        temperature=st.sampled_from([0.0, 0.8]),
        read_ahead=st.sampled_from([0, 1, 7]),
    )
    def submit(self, prompt, shift, read_ahead, **options):
        token_ids = [token_id for token_id, n in prompt for _ in range(n)]
        if not shift:
            token_ids = token_ids[: NUM_CTX - 1]
        request = generation(f"r{len(self.requests)}", token_ids, shift=shift, read_ahead=read_ahead, **options)
        self.requests[request.request_id] = request
        self.driver.submit(request)

    @rule(n=st.integers(1, 40))
    def go_on(self, n):
        for _ in range(n):
            if self.driver.send() is None and self.driver.flying:
                self.driver.land()

    @precondition(lambda self: self.driver.flying)
    @rule()
    def land(self):
        self.driver.land()

    @rule()
    def drain_outputs(self):
        self.driver.drain_outputs()

    @precondition(lambda self: any(not microbatch.rows for microbatch, _ in self.driver.flying))
    @rule()
    def land_what_had_nothing_for_the_head_to_do(self):
        """It overtakes what is at the head; the stages before that keep the order."""
        self.driver.land(next(i for i, (microbatch, _) in enumerate(self.driver.flying) if not microbatch.rows))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        before = len(self.driver.outputs)
        self.driver.cancel(request_id)
        if len(self.driver.outputs) > before:
            self.canceled.add(request_id)

    def unread(self, request_id):
        said = sum(isinstance(output, TextChunk) for output in self.driver.of(request_id))
        return said - self.read[request_id]

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def read_all_there_is(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        pieces = self.unread(request_id)
        self.read[request_id] += pieces
        self.driver.engine.read(request_id, pieces)

    @invariant()
    def the_books_are_right(self):
        self.driver.engine.check()

    @invariant()
    def no_slot_is_written_twice_at_a_time(self):
        written = []
        for microbatch, _ in self.driver.flying:
            for length, start, pages in zip(microbatch.lengths, microbatch.positions, microbatch.pages, strict=True):
                written += [pages[position // 64] * 64 + position % 64 for position in range(start, start + length)]
        assert len(written) == len(set(written))

    @invariant()
    def nobody_is_further_ahead_of_its_reader_than_allowed(self):
        for request_id, request in self.requests.items():
            if request.read_ahead:  # and the tokens of one pass, the last of which may be two pieces
                assert self.unread(request_id) < request.read_ahead + MOST_DRAFTED + 2

    def teardown(self):
        if not hasattr(self, "driver"):
            return
        engine = self.driver.engine
        while True:
            earlier = list(self.driver.outputs)
            self.driver.outputs = earlier + self.driver.run()
            if not engine.running + engine.waiting:
                break
            for request_id in self.requests:
                engine.read(request_id, self.unread(request_id))
                self.read[request_id] += self.unread(request_id)
        assert (self.driver.engine.running, self.driver.engine.waiting) == (0, 0)
        assert self.driver.engine.free_pages == self.kv_pages
        for request_id, request in self.requests.items():
            outputs = self.driver.of(request_id)
            if request_id in self.canceled:
                assert isinstance(outputs[-1], RequestFailed)
                assert naive(request, num_ctx=NUM_CTX)[0].startswith(text_of(outputs))
            else:
                said = (text_of(outputs), output_ids(outputs), finished(outputs).reason)
                assert said == naive(request, num_ctx=NUM_CTX)


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
