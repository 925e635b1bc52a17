"""What a worker does with programs, weights and steps, on the reference device and without sockets."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from ollama_zmq.bus.runner import MAX_PROGRAMS, Reply, Runner
from ollama_zmq.bus.weights import Weights
from ollama_zmq.devices.base import Budget
from ollama_zmq.devices.reference import ReferenceDevice
from ollama_zmq.devices.registry import open_device
from ollama_zmq.errors import (
    ModelFileError,
    OpError,
    OutOfDeviceMemory,
    RemoteProtocolError,
    ShapeError,
    UnsupportedOp,
)
from ollama_zmq.ops.program import Call, verify
from ollama_zmq.wire.messages import CHUNK_BYTES, Defined, Put, Ran, Ready, Stored, WeightSource
from tests.bus.peer import cached_program, chunks_of, define_of, linear_program, random_weight, run_of

PROGRAM = linear_program()
WEIGHT = random_weight()
BLOB = "sha256-" + "ab" * 32


def test_a_broker_may_have_so_many_programs_and_no_more():
    runner = Runner(ReferenceDevice(Budget(64 << 20)), lambda blob: None)
    for number in range(MAX_PROGRAMS):
        runner.define(define_of(cached_program(head_dim=4 + number), kv_pages=1))
    with pytest.raises(OpError, match=f"{MAX_PROGRAMS} programs are here already"):
        runner.define(define_of(linear_program()))
    runner.release(cached_program().id)
    assert runner.define(define_of(linear_program()))


class CountingDevice(ReferenceDevice):
    """Remembers which weights it loaded."""

    def __init__(self, limit: int = 64 << 20) -> None:
        super().__init__(Budget(limit))
        self.loaded: list[str] = []

    def load_weight(self, spec, data):
        self.loaded.append(spec.name)
        return super().load_weight(spec, data)


@pytest.fixture
def device():
    return CountingDevice()


@pytest.fixture
def runner(device):
    return Runner(device, lambda blob: None)


@pytest.fixture
def stored(device, tmp_path):
    """A runner whose own store has a blob with WEIGHT behind 100 bytes."""
    path = tmp_path / "blob"
    path.write_bytes(bytes(100) + WEIGHT.tobytes())
    return Runner(device, {BLOB: path}.get)


def messages(replies):
    return [reply.message for reply in replies]


def upload(runner, program=PROGRAM, weight=WEIGHT, name="w"):
    replies = []
    for put, chunk in chunks_of(program, weight, name=name):
        replies += runner.put(put, chunk)
    return messages(replies)


def ready(runner, program=PROGRAM, **fields):
    runner.define(define_of(program, **fields))
    return upload(runner, program)


def test_a_sent_weight_makes_the_program_ready(runner, device):
    assert runner.define(define_of(PROGRAM)) == [Reply(Defined(PROGRAM.id, ("w",)))]
    *stored, last = upload(runner)
    assert stored == [Stored(PROGRAM.id, 50), Stored(PROGRAM.id, 50), Stored(PROGRAM.id, 28)]
    assert isinstance(last, Ready)
    assert last.nbytes == device.budget.used


def test_a_step_is_what_the_program_says(runner):
    ready(runner)
    x = random_weight(3, 4, seed=1)
    [reply] = runner.run(run_of(PROGRAM, 3), x, queued_us=5)
    np.testing.assert_allclose(reply.tensors["output"], x @ WEIGHT.T, rtol=1e-5)
    assert isinstance(reply.message, Ran)
    assert (reply.message.microbatch, reply.message.queue_us) == (1, 5)


def test_a_weight_of_the_own_store_is_not_asked_for(stored):
    assert messages(stored.define(define_of(PROGRAM, blob=BLOB, offset=100))) == [Defined(PROGRAM.id, ())]
    assert stored.busy
    [loaded] = messages(stored.load_next())
    assert isinstance(loaded, Ready)
    assert not stored.busy
    [reply] = stored.run(run_of(PROGRAM, 1), np.ones((1, 4), np.float32), 0)
    np.testing.assert_allclose(reply.tensors["output"][0], WEIGHT.sum(axis=1), rtol=1e-5)


def test_a_blob_that_is_too_short_is_asked_for(stored):
    assert messages(stored.define(define_of(PROGRAM, blob=BLOB, offset=101))) == [Defined(PROGRAM.id, ("w",))]


def test_a_blob_that_cannot_be_read_is_asked_for(device, tmp_path):
    runner = Runner(device, lambda blob: tmp_path / "nowhere")
    assert messages(runner.define(define_of(PROGRAM, blob=BLOB))) == [Defined(PROGRAM.id, ("w",))]


class InParts(CountingDevice):
    """Loads a weight in three parts."""

    def weight_in_parts(self, spec, data):
        weight = self.load_weight(spec, data)
        try:
            yield
            yield
        except GeneratorExit:
            weight.close()
            raise
        return weight


def test_programs_run_between_the_parts_of_a_weight(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(WEIGHT.tobytes())
    runner = Runner(InParts(), {BLOB: path}.get)
    ready(runner)
    runner.define(define_of(linear_program(name="other"), blob=BLOB))
    for _ in range(2):
        assert runner.load_next() == []
        assert len(runner.run(run_of(PROGRAM, 1), random_weight(1, 4), 0)) == 1
    assert [type(message) for message in messages(runner.load_next())] == [Ready]
    assert not runner.busy


def test_release_between_the_parts_of_a_weight_gives_everything_back(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(WEIGHT.tobytes())
    device = InParts()
    runner = Runner(device, {BLOB: path}.get)
    runner.define(define_of(PROGRAM, blob=BLOB))
    runner.load_next()
    assert device.budget.used > 0
    runner.release(PROGRAM.id)
    assert (runner.busy, device.budget.used) == (False, 0)


def test_a_tied_weight_is_loaded_once(stored, device):
    other = linear_program(name="other")
    stored.define(define_of(PROGRAM, blob=BLOB, offset=100))
    stored.define(define_of(other, blob=BLOB, offset=100))
    while stored.busy:
        stored.load_next()
    x = np.ones((1, 4), np.float32)
    outputs = [stored.run(run_of(p, 1), x, 0)[0].tensors["output"].copy() for p in (PROGRAM, other)]
    np.testing.assert_array_equal(*outputs)
    assert device.loaded == ["w"]


def test_a_shared_weight_stays_while_somebody_uses_it(stored, device):
    other = linear_program(name="other")
    for program in (PROGRAM, other):
        stored.define(define_of(program, blob=BLOB, offset=100))
    while stored.busy:
        stored.load_next()
    stored.release(PROGRAM.id)
    assert stored.run(run_of(other, 1), np.ones((1, 4), np.float32), 0)
    stored.release(other.id)
    assert device.budget.used == 0


def test_the_same_place_in_unnamed_files_is_not_the_same_weight(runner, device):
    other = linear_program(name="other")
    ready(runner)
    assert messages(runner.define(define_of(other))) == [Defined(other.id, ("w",))]


def test_no_name_of_a_file_means_a_weight_that_was_sent(runner):
    other = linear_program(name="other")
    ready(runner)
    for blob in (f"program {PROGRAM.id.hex()}: w", PROGRAM.id.hex(), "w", "None"):
        assert messages(runner.define(define_of(other, blob=blob))) == [Defined(other.id, ("w",))]


@pytest.mark.parametrize("kind", ["reference", "cpu"])
def test_two_names_may_be_of_the_same_bytes(kind, tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(WEIGHT[:4].tobytes())
    device = open_device(kind, threads=1, budget=Budget(64 << 20))
    runner = Runner(device, {BLOB: path}.get)
    program = linear_program(n=4, layers=2)
    define = define_of(program, blob=BLOB)
    sources = tuple(msgspec.structs.replace(source, offset=0) for source in define.sources)
    runner.define(msgspec.structs.replace(define, sources=sources))
    while runner.busy:
        runner.load_next()
    x = random_weight(1, 4, seed=1)
    [reply] = runner.run(run_of(program, 1), x, 0)
    np.testing.assert_allclose(reply.tensors["output"], x @ WEIGHT[:4].T @ WEIGHT[:4].T, rtol=1e-5)
    runner.release_all()
    assert device.budget.used == 0
    device.close()


def test_the_same_bytes_as_another_type_are_another_weight(stored):
    other = linear_program(n=4, k=8)
    stored.define(define_of(PROGRAM, blob=BLOB, offset=100))
    stored.load_next()
    stored.define(define_of(other, blob=BLOB, offset=100))
    assert stored.busy


def test_release_gives_everything_back(runner, device):
    ready(runner)
    runner.define(define_of(linear_program(name="half")))
    put, chunk = chunks_of(linear_program(name="half"), WEIGHT)[0]
    runner.put(put, chunk)
    runner.release_all()
    assert device.budget.used == 0
    with pytest.raises(RemoteProtocolError, match="not ready"):
        runner.run(run_of(PROGRAM, 1), np.ones((1, 4), np.float32), 0)


def test_a_ready_program_defined_again_is_ready_again(runner, device):
    *_, first = ready(runner)
    assert messages(runner.define(define_of(PROGRAM))) == [Defined(PROGRAM.id, ()), first]
    assert device.loaded == ["w"]


def test_a_program_defined_again_while_loading_starts_anew(runner, device):
    runner.define(define_of(PROGRAM))
    put, chunk = chunks_of(PROGRAM, WEIGHT)[0]
    runner.put(put, chunk)
    assert messages(runner.define(define_of(PROGRAM))) == [Defined(PROGRAM.id, ("w",))]
    assert isinstance(upload(runner)[-1], Ready)
    assert device.budget.used < 2 * WEIGHT.nbytes + 4096


def test_memory_is_refused_before_a_byte_moves(tmp_path):
    device = CountingDevice(limit=4096)
    big = linear_program(n=64, k=64)
    with pytest.raises(
        OutOfDeviceMemory, match=r"program 'linear' needs \d+ KB, 4.. KB of the budget of 4.. KB is free"
    ):
        Runner(device, lambda blob: None).define(define_of(big))
    assert (device.budget.used, device.loaded) == (0, [])


def test_memory_promised_to_a_loading_program_is_not_free():
    device = CountingDevice()
    first, second = linear_program(n=64, k=64), linear_program(n=64, k=64, name="second")
    probe = Runner(device, lambda blob: None)
    probe.define(define_of(first))
    device.budget.limit = 50_000
    with pytest.raises(OutOfDeviceMemory, match="'second'"):
        probe.define(define_of(second))
    probe.release(first.id)
    assert probe.define(define_of(second))


def test_a_wrong_digest_drops_the_weight_and_it_can_be_sent_again(runner, device):
    runner.define(define_of(PROGRAM))
    *before, (put, chunk) = chunks_of(PROGRAM, WEIGHT)
    for each in before:
        runner.put(*each)
    with pytest.raises(ModelFileError, match="weight 'w': sha256"):
        runner.put(msgspec.structs.replace(put, digest=bytes(32)), chunk)
    assert (device.budget.used, device.loaded) == (0, [])
    assert isinstance(upload(runner)[-1], Ready)


@pytest.mark.parametrize("size", [1, 127, 128, 500])
def test_chunks_may_have_any_size(runner, size):
    runner.define(define_of(PROGRAM))
    replies = [reply for put, chunk in chunks_of(PROGRAM, WEIGHT, size=size) for reply in runner.put(put, chunk)]
    assert isinstance(replies[-1].message, Ready)


@pytest.mark.parametrize(
    ("put", "chunk", "words"),
    [
        (Put(PROGRAM.id, "w", 10), np.zeros(10, np.uint8), "chunk of 10 bytes at 10, 0 of 128 have arrived"),
        (Put(PROGRAM.id, "w", 0), np.zeros(129, np.uint8), "chunk of 129 bytes at 0, 0 of 128"),
        (Put(PROGRAM.id, "w", 0), np.zeros(0, np.uint8), "chunk uint8 [0]"),
        (Put(PROGRAM.id, "w", 0), np.zeros(CHUNK_BYTES + 1, np.uint8), "chunk uint8 [1048577]"),
        (Put(PROGRAM.id, "w", 0), np.zeros((2, 2), np.uint8), "chunk uint8 [2, 2]"),
        (Put(PROGRAM.id, "w", 0), np.zeros(4, np.float32), "chunk float32 [4]"),
        (Put(PROGRAM.id, "v", 0), np.zeros(4, np.uint8), "weight 'v' of program"),
        (Put(b"?", "w", 0), np.zeros(4, np.uint8), "weight 'w' of program 3f is not asked for"),
    ],
)
def test_a_chunk_that_does_not_fit_is_named(runner, put, chunk, words):
    runner.define(define_of(PROGRAM))
    with pytest.raises(RemoteProtocolError) as caught:
        runner.put(put, chunk)
    assert words in str(caught.value)
    assert isinstance(upload(runner)[-1], Ready)


def test_a_chunk_costs_the_same_however_many_weights_a_program_has(runner, monkeypatch):
    program, asked = linear_program(4, 4, layers=30), []
    contains = Weights.__contains__
    runner.define(define_of(program))
    monkeypatch.setattr(Weights, "__contains__", lambda self, identity: asked.append(1) or contains(self, identity))
    puts = [each for i in range(30) for each in chunks_of(program, random_weight(4, 4), name=f"w{i}")]
    *_, last = [reply for put, chunk in puts for reply in messages(runner.put(put, chunk))]
    assert isinstance(last, Ready)
    assert len(asked) <= 2 * len(puts)


def test_a_weight_with_two_names_counts_once(device, tmp_path):
    program = linear_program(4, 4, layers=2)
    path = tmp_path / "blob"
    path.write_bytes(random_weight(4, 4).tobytes())
    runner, sources = Runner(device, {BLOB: path}.get), tuple(WeightSource(f"w{i}", BLOB, 0, 64) for i in range(2))
    runner.define(msgspec.structs.replace(define_of(program, blob=BLOB), sources=sources))
    loaded = messages(runner.load_next())
    while runner.busy:
        loaded += messages(runner.load_next())
    (last,) = loaded
    assert last.nbytes == device.budget.used


def test_chunks_of_a_weight_that_is_here_already_are_credit_and_no_more(runner, device):
    other = linear_program(name="other")
    for program in (PROGRAM, other):
        runner.define(define_of(program, blob=BLOB))
    assert [type(m) for m in upload(runner)] == [Stored, Stored, Stored, Ready, Ready]
    assert [type(m) for m in upload(runner, other)] == [Stored, Stored, Stored]
    assert device.loaded == ["w"]


def replaced(define, **fields):
    return msgspec.structs.replace(define, **fields)


SOURCE = define_of(PROGRAM).sources[0]


@pytest.mark.parametrize(
    ("define", "error", "words"),
    [
        (replaced(define_of(PROGRAM), program=b"x" * 16), RemoteProtocolError, "is not the digest of its code"),
        (replaced(define_of(PROGRAM), program=b""), RemoteProtocolError, "is not the digest of its code"),
        (replaced(define_of(PROGRAM), sources=()), RemoteProtocolError, "0 sources for 1 weights"),
        (replaced(define_of(PROGRAM), sources=(WeightSource("v", "", 0, 128),)), RemoteProtocolError, "'v' where 'w'"),
        (replaced(define_of(PROGRAM), sources=(WeightSource("w", "", 0, 64),)), RemoteProtocolError, "64 bytes"),
        (replaced(define_of(PROGRAM), sources=(WeightSource("w", "", -1, 128),)), RemoteProtocolError, "offset -1"),
        (replaced(define_of(PROGRAM), kv_pages=-1), OpError, "kv_pages=-1"),
        (replaced(define_of(PROGRAM), kv_pages=1 << 40), OpError, "kv_pages="),
        (replaced(define_of(PROGRAM), max_tokens=0), OpError, "max_tokens=0"),
        (replaced(define_of(PROGRAM), max_tokens=1 << 20), OpError, "max_tokens="),
        (replaced(define_of(PROGRAM), max_rows=0), OpError, "max_rows=0"),
        (replaced(define_of(PROGRAM), max_rows=1 << 10), OpError, "max_rows=1024"),
        (replaced(define_of(PROGRAM), threads=-1), OpError, "threads=-1"),
        (replaced(define_of(PROGRAM), threads=1 << 20), OpError, "threads=1048576"),
        (define_of(cached_program(), kv_pages=1 << 23), OutOfDeviceMemory, "program 'attention' needs"),
    ],
)
def test_a_wrong_definition_is_named(runner, device, define, error, words):
    with pytest.raises(error) as caught:
        runner.define(define)
    assert words in str(caught.value)
    assert device.budget.used == 0


@pytest.mark.parametrize(("wanted", "used"), [(0, 3), (2, 2), (3, 3), (9, 3)])
def test_a_program_runs_on_as_many_threads_as_its_definition_says(wanted, used):
    device = open_device("cpu", threads=3, budget=Budget(64 << 20))
    Runner(device, lambda blob: None).define(replaced(define_of(cached_program(), kv_pages=1), threads=wanted))
    fields = {"kv_pages": 1, "max_tokens": 16, "max_rows": 16}
    sizes = [device.executable_nbytes(verify(cached_program()), **fields, threads=n) for n in (1, 2, 3)]
    assert sizes.index(device.budget.used) + 1 == used
    device.close()


def test_an_unknown_op_is_named(runner):
    strange = msgspec.structs.replace(PROGRAM, calls=(Call("explode", {}, {}),))
    with pytest.raises(UnsupportedOp, match="unknown op 'explode'"):
        runner.define(define_of(strange))


@pytest.mark.parametrize(
    ("run", "x", "words"),
    [
        (run_of(PROGRAM, 17), np.ones((17, 4), np.float32), "T=17 tokens, planned for 16"),
        (run_of(PROGRAM, 2), np.ones((3, 4), np.float32), "(3, 4), expected float32 (2, 4)"),
        (run_of(PROGRAM, 2), np.ones((2, 4), np.int32), "int32 (2, 4), expected float32"),
        (run_of(PROGRAM, 1, lengths=(0,)), np.ones((0, 4), np.float32), "lengths start at 1"),
        (run_of(PROGRAM, 1, lengths=(-3,)), np.ones((1, 4), np.float32), "lengths start at 1"),
        (run_of(PROGRAM, 1, positions=(-1,)), np.ones((1, 4), np.float32), "positions at 0"),
        (run_of(PROGRAM, 1, positions=(1 << 31,)), np.ones((1, 4), np.float32), "positions"),
        (run_of(PROGRAM, 1, lengths=((1 << 31) - 1,) * 3, positions=(0,) * 3), np.ones((1, 4), np.float32), "T="),
        (run_of(PROGRAM, 1, rows=(1,)), np.ones((1, 4), np.float32), "rows"),
        (run_of(PROGRAM, 1, rows=(-1,)), np.ones((1, 4), np.float32), "rows"),
    ],
)
def test_a_step_that_does_not_fit_is_named(runner, run, x, words):
    ready(runner)
    with pytest.raises(ShapeError) as caught:
        runner.run(run, x, 0)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pages": ()}, "pages [0] differ"),
        ({"pages": ((2,),)}, "pages[0]"),
        ({"pages": ((-1,),)}, "pages[0]"),
        ({"pages": ((0,),), "positions": (64,)}, "pages[0] hold 64 slots"),
    ],
)
def test_pages_outside_the_cache_are_refused(runner, fields, words):
    program = cached_program()
    runner.define(define_of(program, kv_pages=2))
    with pytest.raises(ShapeError) as caught:
        runner.run(run_of(program, 1, **fields), np.ones((1, 4), np.float32), 0)
    assert words in str(caught.value)


def test_a_program_whose_weights_fail_to_load_is_forgotten(device, tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(WEIGHT.tobytes())
    runner = Runner(device, {BLOB: path}.get)
    runner.define(define_of(PROGRAM, blob=BLOB))
    device.budget.limit = 10
    with pytest.raises(OutOfDeviceMemory):
        runner.load_next()
    assert (runner.busy, device.budget.used) == (False, 0)
