"""The worker's table, row by row. Failures between machines are two-line tests here."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from ollama_zmq.cluster import worker as module
from ollama_zmq.cluster.worker import SILENCE_LIMIT_S, TAKEN_KEPT, State, Worker
from ollama_zmq.cluster.worker_events import (
    NO_MICROBATCH,
    Answered,
    Compute,
    DropPeer,
    PeerDisconnected,
    Received,
    Rejected,
    ReleaseAll,
    SendReply,
    SendWelcome,
    Stopped,
    StoreChunk,
    TimePassed,
    Unload,
    Verify,
    WorkFailed,
)
from ollama_zmq.errors import OutOfDeviceMemory, RemoteProtocolError
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import (
    Bye,
    Define,
    Defined,
    Failed,
    Hello,
    Ping,
    Pong,
    Put,
    Ran,
    Refused,
    Release,
    Run,
    Stored,
)

NAME = "10.0.0.10:50052"
A, B = "a" * 16, "b" * 16
P = bytes(16)
HELLO = Hello(VERSION, PROTOCOL, A)
DEFINE = Define(P, b"code", (), 0, 8, 8)
PUT = Put(P, "w", 0)
RUN = Run(P, 7, (1,), (0,), (), ())
INPUT = np.zeros((1, 4), np.float32)
PAYLOAD = np.zeros(3, np.uint8)


def got(message, seq, *, now=1.0, epoch=3, **tensors):
    return Received(now, Envelope(message, tensors, epoch, seq))


def sent(message, seq, *, epoch=3, **tensors):
    return SendReply(Envelope(message, tensors, epoch, seq))


def failed(kind, detail, *, program=b"", microbatch=NO_MICROBATCH):
    return Failed(program, microbatch, kind, detail)


@pytest.fixture
def idle():
    return Worker(NAME)


@pytest.fixture
def leased(idle):
    """Leased to broker A in epoch 3 at time 0; its next message has seq 1, ours seq 0."""
    assert idle.handle(got(HELLO, 0, now=0.0)) == [SendWelcome()]
    return idle


def test_hello_is_the_lease(idle):
    assert idle.handle(got(HELLO, 0)) == [SendWelcome()]
    assert (idle.state, idle.broker, idle.epoch) == (State.LEASED, A, 3)


def test_a_repeated_hello_is_answered_again_and_nothing_is_lost(leased):
    leased.handle(got(RUN, 1, input=INPUT))
    leased.handle(Answered(1.0, Stored(P, 1)))
    assert leased.handle(got(HELLO, 2)) == [SendWelcome()]
    assert leased.handle(got(RUN, 3, input=INPUT)) == []
    assert leased.handle(Answered(1.0, Stored(P, 1))) == [sent(Stored(P, 1), 1)]


def test_another_protocol_is_refused_naming_both_versions_and_the_fix(idle):
    idle.handle(got(Hello("0.4.1", PROTOCOL + 2, A), 0))
    [effect] = idle.handle(got(Hello("0.4.1", PROTOCOL + 2, A), 0))
    assert effect.envelope.message == Refused(
        f"worker {NAME} runs ollama-zmq {VERSION} (protocol {PROTOCOL}), this broker 0.4.1 (protocol {PROTOCOL + 2}): "
        "install the same version on both",
        VERSION,
        PROTOCOL,
    )
    assert idle.state is State.IDLE


def test_a_second_broker_is_refused_and_the_first_keeps_the_lease(leased):
    refusal = Refused(f"worker {NAME} is in use by another server", VERSION, PROTOCOL)
    assert leased.handle(got(Hello(VERSION, PROTOCOL, B), 0, epoch=9)) == [sent(refusal, 0, epoch=9)]
    assert (leased.broker, leased.handle(got(RUN, 1, input=INPUT))) == (A, [Compute(RUN, INPUT, 1.0)])


def test_a_newer_epoch_of_the_same_broker_releases_everything_of_the_older(leased):
    assert leased.handle(got(HELLO, 0, epoch=4)) == [ReleaseAll(A, "connected again"), SendWelcome()]
    assert leased.handle(got(RUN, 1, epoch=3, input=INPUT)) == []
    assert leased.handle(got(RUN, 1, epoch=4, input=INPUT)) == [Compute(RUN, INPUT, 1.0)]


def test_an_older_hello_is_stale(leased):
    assert leased.handle(got(HELLO, 0, epoch=2)) == []
    assert leased.epoch == 3


def test_older_epochs_are_dropped(leased):
    assert leased.handle(got(RUN, 1, epoch=2, input=INPUT)) == []


def test_a_newer_epoch_must_say_hello_first(leased):
    detail = "epoch 4 has not said hello, this is 3"
    assert leased.handle(got(RUN, 1, epoch=4, input=INPUT)) == [sent(failed("RemoteProtocolError", detail), 0)]


@pytest.mark.parametrize(
    ("message", "tensors", "program", "microbatch"),
    [(RUN, {"input": INPUT}, P, 7), (DEFINE, {}, P, -1), (Ping(1), {"payload": PAYLOAD}, b"", -1)],
)
def test_a_restarted_worker_says_that_it_knows_nothing(idle, message, tensors, program, microbatch):
    detail = f"worker {NAME} has no lease of this broker: it was restarted or the lease ended"
    expected = failed("StageLost", detail, program=program, microbatch=microbatch)
    assert idle.handle(got(message, 41, **tensors)) == [sent(expected, 0)]
    assert idle.state is State.IDLE


def test_bye_to_an_idle_worker_is_not_answered(idle):
    assert idle.handle(got(Bye(), 5)) == []


def test_ping_comes_back_with_its_payload(leased):
    assert leased.handle(got(Ping(5), 1, payload=PAYLOAD)) == [sent(Pong(5), 0, payload=PAYLOAD)]


def test_work_is_handed_to_the_loop(leased):
    assert leased.handle(got(DEFINE, 1)) == [Verify(DEFINE)]
    assert leased.handle(got(PUT, 2, chunk=PAYLOAD)) == [StoreChunk(PUT, PAYLOAD)]
    assert leased.handle(got(RUN, 3, now=2.5, input=INPUT)) == [Compute(RUN, INPUT, 2.5)]
    assert leased.handle(got(Release(P), 4)) == [Unload(P)]


def test_replies_are_numbered_within_the_epoch(leased):
    assert leased.handle(Answered(1.0, Defined(P, ("w",)))) == [sent(Defined(P, ("w",)), 0)]
    assert leased.handle(Answered(1.1, Stored(P, 3))) == [sent(Stored(P, 3), 1)]
    leased.handle(got(HELLO, 0, epoch=4))
    assert leased.handle(Answered(1.2, Stored(P, 3))) == [sent(Stored(P, 3), 0, epoch=4)]


def test_results_carry_their_tensors(leased):
    ran = Ran(P, 7, 10, 1)
    assert leased.handle(Answered(1.0, ran, {"output": INPUT})) == [sent(ran, 0, output=INPUT)]


def test_a_repeated_microbatch_runs_once(leased):
    assert leased.handle(got(RUN, 1, input=INPUT)) == [Compute(RUN, INPUT, 1.0)]
    assert leased.handle(got(RUN, 2, input=INPUT)) == []


def test_the_same_microbatch_runs_on_every_program(leased):
    other = Run(b"q" * 16, 7, (1,), (0,), (), ())
    assert leased.handle(got(RUN, 1, input=INPUT)) == [Compute(RUN, INPUT, 1.0)]
    assert leased.handle(got(other, 2, input=INPUT)) == [Compute(other, INPUT, 1.0)]


def test_only_the_last_microbatches_are_remembered(leased):
    for i in range(TAKEN_KEPT + 1):
        run = Run(P, i, (1,), (0,), (), ())
        assert leased.handle(got(run, 1 + i, input=INPUT)) == [Compute(run, INPUT, 1.0)]
    first, second = Run(P, 0, (1,), (0,), (), ()), Run(P, 1, (1,), (0,), (), ())
    assert leased.handle(got(second, TAKEN_KEPT + 2, input=INPUT)) == []
    assert leased.handle(got(first, TAKEN_KEPT + 3, input=INPUT)) == [Compute(first, INPUT, 1.0)]


def test_errors_keep_their_class_and_microbatch(leased):
    broke = WorkFailed(1.0, OutOfDeviceMemory("program 'p' needs 2 GB"), P, 7)
    detail = failed("OutOfDeviceMemory", "program 'p' needs 2 GB", program=P, microbatch=7)
    assert leased.handle(broke) == [sent(detail, 0)]


def test_rubbish_is_answered_and_changes_nothing(leased):
    assert leased.handle(Rejected(1.0, RemoteProtocolError("1 frames"))) == [
        sent(failed("RemoteProtocolError", "1 frames"), 0)
    ]
    assert leased.state is State.LEASED


def test_what_only_a_worker_says_is_refused(leased):
    detail = "message 'stored' is for a broker, this is a worker"
    assert leased.handle(got(Stored(P, 1), 1)) == [sent(failed("RemoteProtocolError", detail), 0)]


def test_bye_ends_the_lease(leased):
    assert leased.handle(got(Bye(), 1)) == [ReleaseAll(A, "said bye")]
    assert leased.state is State.IDLE


def test_a_leased_worker_that_is_stopped_says_bye_and_an_idle_one_nothing(leased):
    assert leased.handle(Stopped(1.0)) == [sent(Bye(), 0), ReleaseAll(A, "this worker was stopped")]
    assert leased.handle(Stopped(1.1)) == []


def test_a_lost_connection_ends_the_lease(leased):
    assert leased.handle(PeerDisconnected(1.0)) == [ReleaseAll(A, "disconnected")]
    assert leased.handle(PeerDisconnected(1.1)) == []


def test_after_the_lease_anybody_may_have_it(leased):
    leased.handle(PeerDisconnected(1.0))
    assert leased.handle(got(Hello(VERSION, PROTOCOL, B), 0, epoch=1)) == [SendWelcome()]
    assert (leased.broker, leased.epoch) == (B, 1)


def test_a_lost_message_ends_the_lease(leased):
    detail = "message 1 of epoch 3 did not arrive, 2 did"
    assert leased.handle(got(RUN, 2, input=INPUT)) == [
        sent(failed("RemoteProtocolError", detail), 0),
        ReleaseAll(A, "a message was lost"),
    ]


def test_a_message_that_was_handled_is_stale(leased):
    leased.handle(got(DEFINE, 1))
    assert leased.handle(got(DEFINE, 1)) == []


def test_silence_ends_the_lease_and_forgets(leased):
    assert leased.handle(TimePassed(SILENCE_LIMIT_S)) == []
    assert leased.handle(TimePassed(SILENCE_LIMIT_S + 0.1)) == [DropPeer(), ReleaseAll(A, "silent for 10 s")]
    assert leased.state is State.IDLE


def test_any_message_breaks_the_silence(leased):
    leased.handle(got(Ping(1), 1, now=9.0, payload=PAYLOAD))
    assert leased.handle(TimePassed(SILENCE_LIMIT_S + 8.9)) == []


@pytest.mark.parametrize("done", [Answered(60.0, Stored(P, 1)), WorkFailed(60.0, OutOfDeviceMemory("x"), P)])
def test_long_work_is_not_the_brokers_silence(leased, done):
    leased.handle(done)
    assert leased.handle(TimePassed(60.0 + SILENCE_LIMIT_S)) == []


def test_stale_messages_do_not_break_the_silence(leased):
    leased.handle(got(RUN, 1, now=9.0, epoch=2, input=INPUT))
    assert leased.handle(TimePassed(SILENCE_LIMIT_S + 0.1)) == [DropPeer(), ReleaseAll(A, "silent for 10 s")]


def test_an_idle_worker_waits_for_ever(idle):
    assert idle.next_deadline() == float("inf")
    assert idle.handle(TimePassed(1e9)) == []


def test_a_leased_worker_wakes_when_silence_is_too_long(leased):
    assert leased.next_deadline() == SILENCE_LIMIT_S
    leased.handle(got(Ping(1), 1, now=4.0, payload=PAYLOAD))
    assert leased.next_deadline() == 4.0 + SILENCE_LIMIT_S


def test_results_of_an_ended_lease_are_not_sent(leased):
    leased.handle(PeerDisconnected(1.0))
    assert leased.handle(Answered(1.1, Stored(P, 1))) == []
    assert leased.handle(WorkFailed(1.2, OutOfDeviceMemory("x"), P)) == []


def test_the_decision_knows_no_sockets_and_no_clock():
    source = Path(module.__file__).read_text()
    assert not re.search(r"import (zmq|time|threading|socket)|from (zmq|time|threading|socket)", source)
