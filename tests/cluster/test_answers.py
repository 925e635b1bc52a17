"""What a worker may answer: everything else costs it the link, and nothing of it is taken."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from ollama_zmq.cluster.answers import cleaned
from ollama_zmq.cluster.events import Computed, LoadFailed, ModelLost
from ollama_zmq.cluster.link import Status
from ollama_zmq.cluster.pipeline import LAST_DEADLINE_S
from ollama_zmq.cluster.stages import LOCAL
from ollama_zmq.errors import OllamaZmqError, RemoteProtocolError, ShapeError
from ollama_zmq.version import PROTOCOL
from ollama_zmq.wire.messages import (
    Define,
    Defined,
    DeviceInfo,
    Failed,
    Hello,
    MatrixSpeed,
    Ran,
    Ready,
    Refused,
    Run,
    Stored,
)
from tests.cluster.fake_workers import BUDGET, FakeWorkers, welcome
from tests.cluster.steps import A, B, decode_step, load, model_of, order, run

NAN = float("nan")


def two_models(workers: FakeWorkers, network) -> bytes:
    """Model 1 on A and model 2 on B; return the program of the first on A."""
    load(workers, order(network, A, model=1))
    load(workers, order(network, B, model=2))
    return model_of(workers, 1).stages[0].program


def test_an_answer_for_a_program_of_another_worker_costs_the_link_and_nothing_is_taken(workers, network):
    two_models(workers, network)
    (sent,) = run(workers, decode_step(), 1)
    step = sent.envelope.message
    output = np.full((1, network.hidden_size), 666, np.float32)
    (lost,) = workers.say(B, Ran(step.program, step.microbatch, 1, 1), output=output)
    assert (type(lost), lost.model, workers.coordinator.links[B].status) == (ModelLost, 2, Status.LOST)
    (computed,) = workers.carry_out([sent])
    assert isinstance(computed, Computed)
    assert np.all(computed.logits == 7 + 2)


@pytest.mark.parametrize("kind", ["ready", "defined", "stored", "failed"])
def test_no_other_message_about_a_foreign_program_counts(workers, network, kind):
    program = two_models(workers, network)
    messages = {
        "ready": Ready(program, 1),
        "defined": Defined(program, ()),
        "stored": Stored(program, 1),
        "failed": Failed(program, -1, "OpError", "no"),
    }
    (lost,) = workers.say(B, messages[kind])
    assert (type(lost), lost.model) == (ModelLost, 2)
    assert model_of(workers, 1).phase.value == "loaded"


def test_an_answer_about_a_program_that_the_worker_has_no_more_is_late(workers, network):
    program = two_models(workers, network)
    workers.carry_out(workers.coordinator.unload(1))
    workers.carry_out(workers.coordinator.join((A,), workers.now))
    assert workers.say(A, Ran(program, 1, 1, 1), output=np.zeros((1, 1), np.float32)) == []
    assert workers.coordinator.links[A].status is Status.READY


def test_what_was_defined_on_an_older_connection_counts_on_no_newer_one(workers, network):
    load(workers, order(network, A))
    program = model_of(workers).stages[0].program
    workers.happen(workers.lost(A, "the connection broke"))
    load(workers, order(network, A, model=2))
    (lost,) = workers.say(A, Ready(program, 1))
    assert (type(lost), lost.model) == (ModelLost, 2)


@pytest.mark.parametrize(
    ("compute_us", "queue_us", "shape", "kind"),
    [
        (-1, 1, (1, 64), np.float32),
        (2**62, 1, (1, 64), np.float32),
        (1, -1, (1, 64), np.float32),
        (1, 2**62, (1, 64), np.float32),
        (1, 1, (2, 64), np.float32),
        (1, 1, (1, 63), np.float32),
        (1, 1, (64,), np.float32),
        (1, 1, (1, 64), np.float16),
    ],
)
def test_an_output_that_is_not_of_the_step_costs_the_link(workers, network, compute_us, queue_us, shape, kind):
    assert network.hidden_size == 64
    load(workers, order(network, A, B))
    (sent,) = run(workers, decode_step())
    step = sent.envelope.message
    ended = workers.say(A, Ran(step.program, step.microbatch, compute_us, queue_us), output=np.zeros(shape, kind))
    assert [type(effect) for effect in ended] == [ModelLost]


def test_a_duration_longer_than_the_step_was_under_way_counts_as_the_whole_of_it(workers, network):
    load(workers, order(network, A))
    (sent,) = run(workers, decode_step())
    step = sent.envelope.message
    workers.now += 0.25
    (computed,) = workers.say(A, Ran(step.program, step.microbatch, 10**9, 1), output=np.zeros((1, 64), np.float32))
    assert (computed.times[0].work_s, computed.times[0].transfer_s) == (pytest.approx(0.25), 0.0)


@pytest.mark.parametrize("nbytes", [-1, 2 * BUDGET + 1, 2**62])
def test_a_program_cannot_take_more_memory_than_there_is(workers, network, nbytes):
    workers.answers[(A, Define)] = lambda m: [Defined(m.program, ()), Ready(m.program, nbytes)]
    load(workers, order(network, A))
    assert workers.coordinator.links[A].status is Status.LOST
    assert "nbytes=" in workers.coordinator.links[A].detail


@pytest.mark.parametrize("received", [-1, 2**62])
def test_only_what_was_sent_can_have_arrived(workers, network, received):
    workers.lacking = {A}
    workers.lies[(A, Stored)] = lambda message: msgspec.structs.replace(message, received=received)
    load(workers, order(network, A))
    assert "received=" in workers.coordinator.links[A].detail


@pytest.mark.parametrize("missing", [("no.such.weight",), ("twice", "twice")])
def test_only_weights_of_the_program_can_be_missing_and_each_once(workers, network, missing):
    def names(message: Define) -> tuple[str, ...]:
        return tuple(message.sources[0].name if name == "twice" else name for name in missing)

    workers.answers[(A, Define)] = lambda m: [Defined(m.program, names(m))]
    load(workers, order(network, A))
    assert workers.coordinator.links[A].status is Status.LOST


def test_a_failure_of_a_step_that_is_elsewhere_fails_nothing(workers, network):
    load(workers, order(network, A, B))
    (sent,) = run(workers, decode_step())
    behind = model_of(workers).stages[1].program
    assert workers.say(B, Failed(behind, sent.envelope.message.microbatch, "OpError", "no")) == []
    (computed,) = workers.carry_out([sent])
    assert isinstance(computed, Computed)


@pytest.mark.parametrize(
    "lie",
    [
        {"memory_budget": 2**62},
        {"memory_total": -1},
        {"protocol": PROTOCOL + 1},
        {"threads": 0},
        {"threads": 2**40},
        {"decode_bytes_per_s": NAN},
        {"prefill_macs_per_s": -1.0},
        {"decode_bytes_per_s": 1e300},
        {"call_s": 2.0},
        {"call_s": float("inf")},
        {"matrices": (MatrixSpeed(2, NAN, 1.0),)},
        {"devices": (DeviceInfo("cpu", "x"),) * 65},
    ],
)
def test_a_welcome_with_a_number_of_no_machine_is_refused(lie):
    with pytest.raises(RemoteProtocolError):
        cleaned(welcome(**lie))


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("ModelNotFound", OllamaZmqError),
        ("RequestError", OllamaZmqError),
        ("ServerBusy", OllamaZmqError),
        ("MemoryInUse", OllamaZmqError),
        ("SystemExit", OllamaZmqError),
        ("ShapeError", ShapeError),
    ],
)
def test_a_worker_raises_no_error_that_a_client_would_take_for_its_own(workers, network, kind, raised):
    workers.answers[(A, Define)] = lambda m: [Failed(m.program, -1, kind, "no")]
    (failed,) = load(workers, order(network, A))
    assert type(failed.error) is raised
    assert str(failed.error) == f"worker {A}: no"


def test_text_of_a_worker_is_one_printable_line(workers, network):
    workers.answers[(A, Define)] = lambda m: [Failed(m.program, -1, "OpError", "\x1b[2J\x07" + "x" * 1000)]
    (failed,) = load(workers, order(network, A))
    assert isinstance(failed, LoadFailed)
    assert str(failed.error).isprintable()
    assert len(str(failed.error)) < 600
    assert cleaned(Refused("a\x1bb", "1", 1)) == Refused("a\\x1bb", "1", 1)
    assert cleaned(Refused("a", "\x1b[2J", 1)).package.isprintable()
    assert cleaned(welcome(id="\x1b[2J")).id.isprintable()
    said = cleaned(welcome(host="h\x07", devices=(DeviceInfo("cpu", "\x1b]0;owned"),), package="9\n"))
    assert (said.host, said.devices[0].name, said.package) == ("h\\x07", "\\x1b]0;owned", "9 ")


def test_honest_messages_are_as_they_were():
    for message in (welcome(), Ready(b"p", 1), Run(b"p", 1, (1,), (0,), (), ()), Failed(b"", -1, "X", "é")):
        assert msgspec.structs.asdict(cleaned(message)) == msgspec.structs.asdict(message)


def test_what_a_program_misses_is_said_once(workers, network):
    workers.answers[(A, Define)] = lambda m: [Defined(m.program, ()), Defined(m.program, ())]
    load(workers, order(network, A))
    assert workers.coordinator.links[A].detail.endswith(" twice")


def test_nothing_stored_is_no_progress(workers, network):
    workers.lacking = {A}
    workers.lies[(A, Stored)] = lambda honest: Stored(honest.program, 0)
    load(workers, order(network, A))
    assert "received=0" in workers.coordinator.links[A].detail


def test_no_worker_is_waited_for_longer_than_ten_minutes_however_slow_it_says_it_is(workers, network):
    slow = welcome(decode_bytes_per_s=1.0, prefill_macs_per_s=0.0, values_per_s=5e-324, call_s=1.0)
    workers.answers[(A, Hello)] = lambda _: [slow]
    workers.answers[(LOCAL, Hello)] = lambda _: [welcome(memory_budget=400_000)]
    load(workers, order(network, A))
    run(workers, decode_step())
    (flight,) = model_of(workers).in_flight.values()
    assert flight.deadline - flight.sent_at == LAST_DEADLINE_S == 600.0


def test_a_load_that_does_not_fit_without_the_worker_that_broke_the_protocol_names_it(workers, network):
    workers.answers[(LOCAL, Hello)] = lambda _: [welcome(memory_budget=400_000)]
    workers.answers[(A, Define)] = lambda m: [Defined(m.program, ("no.such.weight",))]
    (failed,) = load(workers, order(network, A))
    assert f"missing: worker {A} broke the protocol" in str(failed.error)
