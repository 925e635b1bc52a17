"""A tokenizer, a model and a driver for the engine, small enough to see through.

The model keeps a KV cache of its own, in pages as a device does. What it stores for a token depends on all tokens
before it, and its logits depend on every slot it is told to attend to; so a slot that was written by somebody else,
not written at all, or reused with a wrong beginning changes what is generated.
"""

from __future__ import annotations

import functools
from collections import deque

import numpy as np

from ollama_zmq.devices.base import Step
from ollama_zmq.engine.engine import Engine
from ollama_zmq.engine.pacing import StageTime
from ollama_zmq.engine.requests import Finished, GenerationRequest, TextChunk
from ollama_zmq.engine.sampler import Sampler
from ollama_zmq.formats.options import Options
from ollama_zmq.ops.state import PAGE_SLOTS

END = 256
V = 300
OWN_FIELDS = ("truncate", "shift", "logprobs", "top_logprobs", "read_ahead")
WORDS = {257: "stop", 258: "\n\n", 259: "User", 260: ":", 261: " the"}


class FakeTokenizer:
    """Bytes are tokens 0..255, 256 ends a text, then some words; the rest is text that names itself."""

    vocab_size = V
    add_bos = False
    add_space_prefix = False
    end_ids = frozenset({END})

    def piece(self, token_id):
        if token_id < 256:
            return bytes([token_id])
        return b"<end>" if token_id == END else WORDS.get(token_id, f"[{token_id}]").encode()

    def is_control(self, token_id):
        return token_id == END

    def token_text(self, token_id):
        return self.piece(token_id).decode("utf-8", "replace")


def mix(*values):
    """One 32-bit number of several; fixed for ever, unlike hash()."""
    state = 0x811C9DC5
    for value in values:
        state = ((state ^ (value & 0xFFFFFFFF)) * 0x01000193 + 0x9E3779B9) & 0xFFFFFFFF
        state ^= state >> 15
    return state


def stored_values(token_ids, values=()):
    """What the model keeps for each token: a number made of it, its position and all before it."""
    values = list(values)
    for position in range(len(values), len(token_ids)):
        values.append(mix(values[-1] if values else 1, token_ids[position], position))
    return values


def logits_of(values):
    """float32 [V], a function of everything attended to; never part of a character."""
    rng = np.random.Generator(np.random.PCG64(mix(*values[-3:], sum(values))))
    logits = rng.normal(0, 3, V).astype(np.float32)
    logits[97:103] += 2
    logits[128:256] = -np.inf
    return logits


def naive_logits(token_ids):
    return logits_of(stored_values(token_ids))


def step_of(microbatch):
    """What a device of this process is given for *microbatch*."""
    return Step(microbatch.lengths, microbatch.positions, microbatch.pages, microbatch.rows)


class FakeModel:
    """A device with pages. Poisoned memory: a slot that was never written gives other numbers."""

    def __init__(self, kv_pages, logits_of=logits_of):
        self.slots = [mix(7, slot) for slot in range(kv_pages * PAGE_SLOTS)]
        self.logits_of = logits_of
        self.tokens_run = 0

    def run(self, microbatch):
        rows, at = [], 0
        wanted = set(microbatch.rows)
        for length, start, pages in zip(microbatch.lengths, microbatch.positions, microbatch.pages, strict=True):
            where = [int(p) * PAGE_SLOTS + s for p in pages for s in range(PAGE_SLOTS)]
            for position in range(start, start + length):
                before = self.slots[where[position - 1]] if position else 1
                self.slots[where[position]] = mix(before, int(microbatch.token_ids[at]), position)
                if at in wanted:
                    rows.append(self.logits_of([self.slots[slot] for slot in where[: position + 1]]))
                at += 1
        self.tokens_run += at
        return np.stack(rows) if rows else np.zeros((0, V), np.float32)


class Driver:
    """An engine and a model side by side: sends microbatches and brings the logits back in order."""

    def __init__(self, *, kv_pages=64, num_ctx=256, max_tokens=64, max_rows=None, model=None, stages=(), **sizes):
        self.engine = Engine(
            tokenizer=FakeTokenizer(),
            vocab_size=V,
            num_ctx=num_ctx,
            kv_pages=kv_pages,
            max_tokens=max_tokens,
            max_rows=max_rows,
            random_seed=lambda: 12345,
            stages=stages,
            **sizes,
        )
        self.stages = stages
        self.max_tokens = max_tokens
        self.max_rows = max_tokens if max_rows is None else max_rows
        self.kv_pages = kv_pages
        self.model = model or FakeModel(kv_pages)
        self.flying = deque()
        self.outputs = []
        self.now = 0.0
        self.tells_late = False  # as the broker does: when the next step has been sent

    def submit(self, request):
        self.outputs += self.engine.submit(request)

    def cancel(self, request_id):
        self.outputs += self.engine.cancel(request_id)

    def send(self):
        """Send one microbatch if the engine has one."""
        microbatch = self.engine.next_microbatch(self.now)
        if microbatch is not None:
            self.now += 1
            step_of(microbatch).check(
                max_tokens=self.max_tokens, max_rows=self.max_rows, kv_pages=self.kv_pages, uses_pages=True
            )
            self.flying.append((microbatch, self.model.run(microbatch)))
        return microbatch

    def land(self, i=0):
        """Bring back the oldest microbatch, or the *i*-th."""
        microbatch, logits = self.flying[i]
        del self.flying[i]
        self.now += 1
        self.engine.complete(microbatch.id, logits, self.now)
        if times := self.times(microbatch):
            self.engine.pacing.observe(times)
        if not self.tells_late:
            self.drain_outputs()

    def drain_outputs(self):
        self.outputs += self.engine.drain_outputs(self.now)

    def times(self, microbatch):
        """What each stage took: anything at all."""
        took = [mix(microbatch.id, i) % 1000 / 1000 for i in range(len(self.stages))]
        return tuple(StageTime(len(microbatch.token_ids), s, None if s > 0.5 else s / 9) for s in took)

    def run(self, *requests):
        """Submit, go on until nothing is left to do, and return the outputs of this time."""
        self.outputs = []
        for request in requests:
            self.submit(request)
        while True:
            while self.send() is not None:
                pass
            self.drain_outputs()
            if not self.flying:
                return self.outputs
            self.land()

    def of(self, request_id):
        return [output for output in self.outputs if output.request_id == request_id]


class Oracle:
    """A drafter that knows what will be said and is wrong now and then; it drafts whatever it costs."""

    def __init__(self, seed, *, num_ctx=256, wrong=0.2):
        self.rng = np.random.default_rng(seed)
        self.num_ctx = num_ctx
        self.wrong = wrong

    def draft(self, sequence, most, decoding):
        said = naive(sequence.request, num_ctx=self.num_ctx)[1][sequence.output_tokens :]
        token_ids = [*said, *self.rng.integers(0, V, 16).tolist()][: self.rng.integers(0, max(most, 0) + 1)]
        return tuple(int(self.rng.integers(0, V)) if self.rng.random() < self.wrong else i for i in token_ids)


def generation(request_id="r", prompt=(1, 2, 3), **fields):
    own = {name: fields.pop(name) for name in OWN_FIELDS if name in fields}
    return GenerationRequest(request_id, tuple(prompt), Options(**{"seed": 1, "num_predict": 20} | fields), **own)


def text_of(outputs):
    return "".join(output.text for output in outputs if isinstance(output, TextChunk))


def output_ids(outputs):
    return tuple(i for output in outputs if isinstance(output, TextChunk) for i in output.token_ids)


def finished(outputs):
    (found,) = [output for output in outputs if isinstance(output, Finished)]
    assert outputs[-1] is found
    return found


@functools.cache
def naive(request, *, num_ctx=256):
    """(text, output ids, reason) by the plainest loop: one sequence, one list of tokens, all text anew each time."""
    options, prompt = request.options, list(request.token_ids)
    keep = min(len(prompt) if options.num_keep < 0 else options.num_keep, num_ctx - 1)
    drop = max((num_ctx - keep) // 2, 1)
    if len(prompt) > num_ctx - 1:
        prompt = prompt[:keep] + prompt[len(prompt) - (num_ctx - drop - keep) :]
    sampler = Sampler(options, seed=12345 if options.seed == -1 else options.seed, num_ctx=num_ctx)
    window, values, sampled, tokenizer = list(prompt), [], [], FakeTokenizer()
    limit = min(max(options.num_predict, 1), 10 * num_ctx) if options.num_predict >= 0 else 10 * num_ctx
    while True:
        values = stored_values(window, values)
        token_id = sampler.sample(logits_of(values), prompt + sampled)
        if token_id == END:
            return decoded(sampled), tuple(sampled), "stop"
        sampled.append(token_id)
        window.append(token_id)
        data = b"".join(map(tokenizer.piece, sampled))
        ends = [(at + len(stop), at) for stop in options.stop if (at := data.find(stop.encode())) >= 0]
        if ends:
            _, at = min(ends)
            while len(b"".join(map(tokenizer.piece, sampled[:-1]))) >= at and sampled:
                sampled.pop()
            return data[:at].decode("utf-8", "replace"), tuple(sampled), "stop"
        if len(sampled) >= limit or sampled[-31:] == [token_id] * 31:
            return decoded(sampled), tuple(sampled), "length"
        if len(window) > num_ctx:
            if not request.shift:
                return decoded(sampled), tuple(sampled), "length"
            window, values = window[:keep] + window[keep + drop :], []


def decoded(token_ids):
    return b"".join(map(FakeTokenizer().piece, token_ids)).decode("utf-8", "replace")


def scripted(token_ids, at=0):
    """A model that says *token_ids* one after another, whatever it is asked, *at* counting from the prompt's length."""

    def logits_of(values):
        logits = np.zeros(V, np.float32)
        logits[token_ids[min(max(len(values) - at, 0), len(token_ids) - 1)]] = 20.0
        return logits

    return logits_of
