"""Fuzzes the coordinator with a worker that lies: ``python -m tests.cluster.fuzz_worker SECONDS [SEED]``.

A worker speaks the protocol up to a random message. From there on it answers with what is well formed and not true:
other programs, sizes, counts and times, numbers that are none, texts that move a cursor, rows nobody asked for, answers
twice, early, or never; and it says more of them while nobody asks. Each crosses the wire: it is encoded and decoded.

The law: the coordinator raises nothing; every load and step ends within its deadlines; what is said of its end names
the worker in one printable line; no lie becomes a number that is shown or reckoned with; what is kept stays small.

A worker that says one byte of progress at a time is not in it: it makes a load last as long as its weights are large.
"""

from __future__ import annotations

import gc
import math
import random
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import msgspec
import numpy as np

from ollama_zmq.cluster.coordinator import Coordinator
from ollama_zmq.cluster.events import (
    Computed,
    ConnectionFailed,
    Effect,
    Event,
    Got,
    LoadFailed,
    ModelLoaded,
    ModelLost,
    Send,
    SendChunk,
    StepFailed,
    Tick,
)
from ollama_zmq.cluster.pipeline import Phase
from ollama_zmq.cluster.stages import LOCAL, LoadOrder, Missing
from ollama_zmq.devices.base import Array
from ollama_zmq.engine.requests import Microbatch
from ollama_zmq.errors import LocalProtocolError, MemoryInUse, RemoteProtocolError, RequestError, ServerBusy
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models.network import Network
from ollama_zmq.wire.frames import Envelope, decode, encode
from ollama_zmq.wire.messages import (
    AnyMessage,
    Defined,
    DeviceInfo,
    Failed,
    Hello,
    MatrixSpeed,
    Pong,
    Ran,
    Ready,
    Refused,
    Run,
    Stored,
    Welcome,
)
from tests.cluster.fake_workers import FakeWorkers, welcome
from tests.models_tiny import write_tiny_llama

LIAR, HONEST = "127.0.0.1:50052", "b:50052"
LIMIT_S = 700.0  # of made time: the longest deadline of a step, and what a load waits for before
ACTS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # in a terminal, or breaks a line
MAX_LINE = 700  # characters of what is said
MAX_NUMBER = 1e18  # of bytes, seconds and whatever else is shown
CLIENTS_FAULTS = (RequestError, ServerBusy, MemoryInUse)
KEPT_NBYTES = 200_000  # that the coordinator may keep of what workers say
STEPS = 6
TERMINAL = "\x1b[2J\x1b]0;owned\x07\r\n\u2028\u202e"
NUMBERS = [0, 1, -1, 2, 63, 65, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 62, (1 << 63) - 1, -(1 << 63)]
FLOATS = [math.nan, math.inf, -math.inf, -1.0, 0.0, 5e-324, 1e-9, 1.0, 1e10, 1.7976931348623157e308]
TEXTS = [
    "",
    "no",
    TERMINAL,
    TERMINAL,
    TERMINAL,
    "\x9b",
    "x" * 4096,
    "é" * 2000,
    "\0" * 10,
    "%s %d {0}",
    "../../etc/passwd",
]
KINDS = ["OpError", "OutOfDeviceMemory", "StageLost", "RequestError", "ServerBusy", "MemoryInUse", "ModelNotFound"]
KINDS += ["SystemExit", "KeyboardInterrupt", "Exception", "", "RemoteProtocolError", "CapacityError", "Unreachable"]
Said = tuple[AnyMessage, dict[str, Array]]


@dataclass
class LyingWorkers(FakeWorkers):
    """The worker at ``LIAR`` lies from its *honest*-th message on, at most *patience* times unasked.

    Attributes:
        wrong: what breaks the law.
        lied: messages that were not true.
    """

    rng: random.Random = field(default_factory=random.Random)
    honest: int = 0
    patience: int = 0
    repeats: bool = False
    wrong: list[str] = field(default_factory=list)
    lied: int = 0
    said: list[Said] = field(default_factory=list)
    known: set[bytes] = field(default_factory=set)
    weights: set[str] = field(default_factory=set)

    def _answers(self, address: str, envelope: Envelope) -> list[Said]:
        if program := getattr(envelope.message, "program", b""):
            self.known.add(program)
        self.weights.update(source.name for source in getattr(envelope.message, "sources", ()))
        return super()._answers(address, envelope)

    def _got(self, address: str, epoch: int, answers: list[Said]) -> list[Event]:
        if address == LIAR:
            answers = [said for answer in answers for said in self._spoken(answer)]
        return [self._over_the_wire(address, epoch, *said) for said in answers]

    def unasked(self) -> list[Event]:
        """What the liar says while nobody asks."""
        link = self.coordinator.links.get(LIAR)
        if link is None or self.patience <= 0 or self.honest > 0:
            return []
        self.patience -= 1
        program = self._program()
        said = (Stored(program, 0), {}) if self.repeats and program in link.defined else self._lie(None)
        return [self._over_the_wire(LIAR, link.epoch, *said)]

    def _spoken(self, answer: Said) -> list[Said]:
        """What comes instead of an honest *answer*."""
        self.honest -= 1
        if self.honest >= 0:
            return [answer]
        return self.rng.choice(
            [
                list,
                lambda: [answer, answer],
                lambda: [self._lie(answer), answer],
                lambda: [answer, self._lie(answer)],
                lambda: [answer],
                lambda: [self._lie(answer)],
                lambda: [self._lie(answer)],
                lambda: [self._lie(answer) for _ in range(self.rng.randint(2, 5))],
            ]
        )()

    def _stored(self, chunk: SendChunk) -> list[Said]:
        self.owed.setdefault((chunk.address, chunk.program), chunk.nbytes)  # it has lied about what it lacks
        return super()._stored(chunk)

    def _over_the_wire(self, address: str, epoch: int, message: AnyMessage, tensors: dict[str, Array]) -> Event:
        number = self.sequences.get((address, epoch), 0)
        if address == LIAR and self.honest < 0:
            self.said = [*self.said[-4:], (message, tensors)]
            if self.rng.random() < 0.03:
                number, epoch = self.rng.choice([(number + 1, epoch), (0, epoch), (number, max(epoch - 1, 0))])
        self.sequences[(address, epoch)] = number + 1
        try:
            frames = encode(Envelope(message, tensors, epoch=epoch, seq=number))
        except LocalProtocolError:  # nobody can say that
            frames = encode(Envelope(Failed(b"", -1, "", ""), {}, epoch=epoch, seq=number))
        try:
            return Got(address, decode([bytes(frame) for frame in frames]))
        except RemoteProtocolError as error:  # as the loop does
            return ConnectionFailed(address, epoch, f"worker {address} sent what the protocol forbids: {error}")

    def _lie(self, answer: Said | None) -> Said:
        self.lied += 1
        rng, message = self.rng, None if answer is None else answer[0]
        if self.said and rng.random() < 0.1:
            return rng.choice(self.said)
        if message is not None and rng.random() < 0.75:
            return self._distorted(message, answer[1] if answer else {})
        program = self._program()
        made = rng.choice([Ready, Defined, Stored, Ran, Failed, Failed, Refused, Refused, Pong, Welcome])
        if made is Ready:
            return Ready(program, self._number()), {}
        if made is Defined:
            return Defined(program, self._names()), {}
        if made is Stored:
            received = self._number()
            return Stored(program, received if received != 1 else 0), {}
        if made is Ran:
            return Ran(program, self._number(), self._number(), self._number()), {"output": self._output()}
        if made is Failed:
            return Failed(program, rng.choice([-1, self._number()]), rng.choice(KINDS), rng.choice(TEXTS)), {}
        if made is Refused:
            return Refused(rng.choice(TEXTS), rng.choice(TEXTS)[:64], self._number()), {}
        if made is Pong:
            return Pong(self._number()), {"payload": np.zeros(rng.choice([0, 1, 8 << 10, 1 << 20]), np.uint8)}
        return self._distorted(welcome(), {})

    def _distorted(self, message: AnyMessage, tensors: dict[str, Array]) -> Said:
        """*message* with one field or tensor that is not true."""
        rng, fields = self.rng, msgspec.structs.asdict(message)
        if tensors and rng.random() < 0.5:
            return message, dict.fromkeys(tensors, self._output())
        names = rng.sample([*fields], k=min(len(fields), rng.choice([1, 1, 2, 3])))
        return msgspec.structs.replace(message, **{name: self._other(name, fields[name]) for name in names}), tensors

    def _other(self, name: str, value: object) -> object:
        rng = self.rng
        match name, value:
            case (("program" | "protocol" | "ops"), _) if rng.random() < 0.8:
                return value  # these are found out at once
            case "program", _:
                return self._program()
            case ("missing", _):
                return self._names()
            case "devices", _:
                return (DeviceInfo("cpu", rng.choice(TEXTS)),) * rng.choice([0, 1, 2, 65, 1000])
            case "matrices", _:
                return (
                    MatrixSpeed(rng.choice([1, 1, 1, -1, 1 << 62]), rng.choice(FLOATS), rng.choice(FLOATS)),
                ) * rng.choice([0, 1, 500])
            case "kind", _:
                return rng.choice(KINDS)
            case _, str():
                return rng.choice(TEXTS)
            case _, float():
                return rng.choice(FLOATS)
        return self._number()

    def _number(self) -> int:
        numbers = [number for pipeline in self.coordinator.pipelines.values() for number in pipeline.in_flight]
        return self.rng.choice([*numbers, *numbers, *NUMBERS])

    def _program(self) -> bytes:
        own = [link.defined for address, link in self.coordinator.links.items() if address == LIAR]
        theirs = [program for programs in own for program in sorted(programs)]
        return self.rng.choice([*theirs, *theirs, *theirs, *sorted(self.known), b"", b"x" * 16])

    def _names(self) -> tuple[str, ...]:
        names = sorted(self.weights)
        some = [self.rng.choice(names) for _ in range(self.rng.randint(0, 4))] if names else []
        return (*some, *self.rng.choice([(), (), ("no.such",), (TERMINAL,), ("w",) * 1000]))

    def _output(self) -> Array:
        rng = self.rng
        shape = rng.choice([(1, 64), (1, 64), (2, 64), (1, 63), (64,), (0, 64), (1, 64, 1), (0, 1 << 20), (300, 300)])
        kind = rng.choice([np.float32, np.float32, np.float16, np.int32, np.uint8])
        return np.full(shape, rng.choice([0.0, 1.0] if kind != np.float32 else [math.nan, math.inf, 1e30]), kind)

    def carry_out(self, effects: list[Effect]) -> list[Effect]:
        """As ever, and look at every effect."""
        begin = len(self.seen)
        mine = super().carry_out(effects)
        for effect in self.seen[begin:]:
            self.wrong += broken(effect)
        self.seen.clear()
        return mine


def broken(effect: Effect) -> Iterator[str]:
    """What *effect* breaks of the law."""
    match effect:
        case LoadFailed(error=error) | ModelLost(error=error) | StepFailed(error=error):
            yield from wrong_sentence(str(error), names=True)
            if isinstance(error, CLIENTS_FAULTS):
                yield f"a client takes this for its own: {error!r:.300}"
        case ModelLoaded(missing=missing, costs=costs, held=held):
            for why in missing:
                yield from wrong_sentence(why, names=True)
            yield from wrong_numbers([(c.work, c.transfer, c.overhead, c.share) for c in costs], "costs")
            yield from wrong_numbers(list(held.values()), "held", 1 << 32)
        case Computed(logits=logits, times=times):
            if logits.shape[0] != 1 or logits.dtype != np.float32:
                yield f"logits are {logits.dtype} {logits.shape}"
            yield from wrong_numbers(times, "times")
        case Send(address, envelope) if address != LIAR and isinstance(envelope.message, Run):
            given = envelope.tensors["input"]
            if (given.shape, given.dtype) != ((1, 64), np.float32) and given.dtype != np.int32:
                yield f"{address} is given {given.dtype} {given.shape}"


def wrong_sentence(text: str, *, names: bool) -> Iterator[str]:
    """What is wrong with a *text* that people read; it *names* a worker."""
    if ACTS.search(text) or len(text) > MAX_LINE:
        yield f"no line to show: {text!r:.300}"
    if names and LIAR not in text:
        yield f"names no worker: {text!r:.300}"


def wrong_numbers(value: Any, what: str, most: float = MAX_NUMBER) -> Iterator[str]:
    """What is none, endless, negative or more than any machine has, in *value* and all that it is made of."""
    if isinstance(value, bool | str | bytes | None):
        return
    if isinstance(value, int | float):
        if not 0 <= value <= most:
            yield f"{what}: {value}"
    elif isinstance(value, dict):
        for name, part in value.items():
            if name not in ("first_layer", "last_layer"):  # -1 for none
                yield from wrong_numbers(part, f"{what}.{name}", most)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from wrong_numbers(part, what, most)
    else:
        yield from wrong_numbers(msgspec.to_builtins(value), what, most)


def texts_of(value: Any) -> Iterator[str]:
    """Every text in *value*, made of lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_of(part)


def kept_nbytes(thing: object, without: Iterable[object]) -> int:
    """Bytes of *thing* and of everything that it holds, but for *without*."""
    seen, pending, nbytes = {id(one) for one in without}, [thing], 0
    while pending:
        one = pending.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType):
            continue
        seen.add(id(one))
        nbytes += one.nbytes if isinstance(one, np.ndarray) else sys.getsizeof(one)
        pending += gc.get_referents(one)
    return nbytes


class Round:
    """One liar under a load or two, some steps, and until all has ended."""

    def __init__(self, network: Network, rng: random.Random) -> None:
        self._network, self._rng = network, rng
        self._file_nbytes = sum(tensor.nbytes for tensor in network.gguf.tensors.values())
        self._coordinator = Coordinator("f00d", cores=4)
        self.workers = LyingWorkers(
            self._coordinator,
            rng=rng,
            honest=rng.choice(
                [0, 0, 0, 0, 1, 5, 7, 7, 7, 8, 8, 9, 9, 9, 10, 10, 11, 12, 14, 16, 20]
            ),  # 7: all but the load
            patience=rng.choice([0, 3, 30, 1 << 30]),
            repeats=rng.random() < 0.3,
            lacking=set(rng.choice([(), (LIAR,), (LIAR, HONEST)])),
        )
        if rng.random() < 0.7:  # the others are needed
            self.workers.answers[(LOCAL, Hello)] = lambda _: [welcome(memory_budget=400_000)]

    def play(self) -> list[str]:
        """Return what broke the law."""
        for model in (1, 2):
            addresses = self._rng.choice([(LIAR,), (LIAR,), (LIAR, HONEST), (HONEST, LIAR)])
            missing = self._rng.choice([Missing.USE_REST, Missing.USE_REST, Missing.REFUSE])
            self._load(LoadOrder(model, "tiny", self._network, "sha256-00", addresses, 128, 1, 16, missing=missing))
            self._look()
            self._steps(model)
        self._look()
        return self.workers.wrong

    def _load(self, order: LoadOrder) -> None:
        effects = self._do(self._coordinator.load(order, self.workers.now))
        self._wait(lambda: self._has_ended(order.model, effects), effects, f"load {order.model}")

    def _has_ended(self, model: int, effects: list[Effect]) -> bool:
        return any(isinstance(one, ModelLoaded | LoadFailed) and one.model == model for one in effects)

    def _steps(self, model: int) -> None:
        for number in range(1, STEPS):
            pipeline = self._coordinator.pipelines.get(model)
            if pipeline is None or pipeline.phase is not Phase.LOADED:
                return
            microbatch = Microbatch(number, np.array([7], np.int32), (1,), (number,), ((0,),), rows=(0,))
            whole = len(pipeline.stages) == 1
            given = microbatch.token_ids if whole else np.full((1, self._network.hidden_size), 7, np.float32)
            effects = self._do(self._coordinator.run(model, microbatch, given, self.workers.now))
            self._wait(lambda model=model: not self._in_flight(model), effects, f"step {number}")

    def _in_flight(self, model: int) -> bool:
        pipeline = self._coordinator.pipelines.get(model)
        return pipeline is not None and bool(pipeline.in_flight)

    def _wait(self, is_over: Callable[[], bool], effects: list[Effect], what: str) -> None:
        """Let time pass until *is_over*, while the liar talks on."""
        began = self.workers.now
        while not is_over() and not self.workers.wrong:
            if self.workers.now - began > LIMIT_S:
                self.workers.wrong.append(f"{what} has not ended within {LIMIT_S} s")
            wake_at = self._coordinator.next_deadline(self.workers.now) + 1e-3
            self.workers.now = max(wake_at, self.workers.now + self._rng.choice([0.1, 0.5, 1.0]))
            for event in [*self.workers.unasked(), Tick()]:
                effects += self._do(self._coordinator.handle(event, self.workers.now))

    def _do(self, effects: list[Effect]) -> list[Effect]:
        mine = self.workers.carry_out(effects)
        self._coordinator.check()
        self._look_at_uploads()
        return mine

    def _look_at_uploads(self) -> None:
        for pipeline in self._coordinator.pipelines.values():
            if any(upload.total > self._file_nbytes for upload in pipeline.uploads.values()):
                self.workers.wrong.append("a worker is sent more than the file has")

    def _look(self) -> None:
        """What is shown and what is kept."""
        shown = msgspec.to_builtins(self._coordinator.state())
        self.workers.wrong += wrong_numbers(shown, "state")
        self.workers.wrong += [wrong for text in texts_of(shown) for wrong in wrong_sentence(text, names=False)]
        kept = kept_nbytes(self._coordinator, [self._network])
        if kept > KEPT_NBYTES:
            self.workers.wrong.append(f"{kept} bytes are kept")


def play_one(network: Network, seed: int) -> tuple[list[str], int]:
    """Play the round of *seed*; return what broke the law, and how many lies were told."""
    one = Round(network, random.Random(seed))
    try:
        wrong = one.play()
    except Exception as error:  # the coordinator raises nothing, whatever it is told
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else ""
        wrong = [f"{type(error).__name__} at {line}: {error}"]
    return [f"seed {seed}: {what}" for what in wrong], one.workers.lied


def fuzz(network: Network, first_seed: int, seconds: float) -> list[str]:
    """Play rounds for *seconds*; return what broke the law."""
    wrong: list[str] = []
    deadline, seed, lies, before = time.monotonic() + seconds, first_seed, 0, 0
    while time.monotonic() < deadline and len(wrong) < 20:
        found, lied = play_one(network, seed)
        wrong, lies, seed = wrong + found, lies + lied, seed + 1
        if seed - first_seed == 1000:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before if before else 0
    print(
        f"coordinator: {seed - first_seed} rounds, {lies} lies, {len(wrong)} wrong, "
        f"peak memory grew by {grown} KB after the first 1,000"
    )
    return wrong


def main() -> int:
    """Fuzz as the command line says."""
    limit, *seed = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder, open_gguf(write_tiny_llama(Path(folder) / "tiny.gguf")) as gguf:
        found = fuzz(Network(gguf), int((seed or ["1"])[0]), float(limit))
    print(*found, sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
