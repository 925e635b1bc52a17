from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from ollama_zmq.cluster.coordinator import Coordinator
from ollama_zmq.cluster.events import (
    Computed,
    Connect,
    Disconnect,
    Got,
    Joined,
    LoadFailed,
    ModelLoaded,
    ModelLost,
    Replaced,
    SendChunk,
    StepFailed,
    Tick,
    Unsendable,
)
from ollama_zmq.cluster.link import Status
from ollama_zmq.cluster.pipeline import DEADLINE_S, Phase
from ollama_zmq.cluster.stages import LOCAL, Missing, Stage
from ollama_zmq.cluster.uploads import BUSY_CREDIT_BYTES, IDLE_CREDIT_BYTES, Upload
from ollama_zmq.cluster.view import model_state
from ollama_zmq.engine.requests import Microbatch
from ollama_zmq.errors import LocalProtocolError, MemoryInUse, OutOfDeviceMemory, ShapeError, StageLost
from ollama_zmq.models.network import Network
from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import (
    CHUNK_BYTES,
    Bye,
    Define,
    Defined,
    Failed,
    Hello,
    Ping,
    Pong,
    Ran,
    Ready,
    Refused,
    Release,
    Run,
    WeightSource,
)
from tests.cluster.fake_workers import BUDGET, FakeWorkers, welcome
from tests.cluster.steps import A, B, decode_step, load, model_of, order, run


def test_two_workers_share_the_layers_and_the_ends_stay_here(workers, network):
    (loaded,) = load(workers, order(network, A, B))
    assert isinstance(loaded, ModelLoaded)
    assert [(s.worker, s.part, s.first_layer, s.last_layer) for s in loaded.stages] == [
        (A, "layers", 0, 1),
        (B, "layers", 2, 3),
        (LOCAL, "head", -1, -1),
    ]
    assert model_of(workers).phase is Phase.LOADED


def test_workers_on_this_machine_share_its_cores_with_the_head(network):
    near = FakeWorkers(Coordinator("f00d", cores=4))
    (loaded,) = load(near, order(network, "127.0.0.1:50052", B))
    assert [cost.share for cost in loaded.costs] == [0.5, 0.0, 0.5]


def test_without_workers_one_program_holds_everything(workers, network):
    (loaded,) = load(workers, order(network))
    assert [(s.worker, s.part) for s in loaded.stages] == [(LOCAL, "whole")]
    assert len(workers.sent(Run)) == 1  # the warm-up token


def test_a_step_passes_every_stage_in_order_with_two_messages_each(workers, network):
    load(workers, order(network, A, B))
    workers.seen.clear()
    (computed,) = workers.carry_out(run(workers, decode_step()))
    assert [address for address, _ in workers.sent(Run)] == [A, B, LOCAL]
    assert isinstance(computed, Computed)
    assert (computed.microbatch, computed.logits.shape) == (1, (1, network.vocab_size))
    assert np.all(computed.logits == 7 + 3)  # each stage added one


def test_pages_go_to_layers_and_rows_to_the_last_of_them_and_the_head(workers, network):
    load(workers, order(network, A, B))
    workers.seen.clear()
    workers.carry_out(run(workers, decode_step()))
    first, last, head = (message for _, message in workers.sent(Run))
    assert (first.pages, last.pages, head.pages) == (((0,),), ((0,),), ())
    assert (first.rows, last.rows, head.rows) == ((), (0,), (0,))


def test_the_head_is_given_the_rows_that_are_wanted_and_no_others(workers, network):
    load(workers, order(network, A))
    workers.seen.clear()
    microbatch = Microbatch(1, np.arange(5, dtype=np.int32), (3, 2), (0, 7), ((0,), (1,)), rows=(2, 4))
    tensor = np.zeros((5, network.hidden_size), np.float32)
    (computed,) = workers.carry_out(workers.coordinator.run(1, microbatch, tensor, workers.now))
    layers, head = (message for _, message in workers.sent(Run))
    assert (layers.rows, head.lengths, head.rows) == ((2, 4), (1, 1), (0, 1))
    assert [time.rows for time in computed.times] == [5, 2]


def test_a_microbatch_of_which_no_logits_are_wanted_does_not_go_to_the_head(workers, network):
    load(workers, order(network, A))
    workers.seen.clear()
    microbatch = Microbatch(1, np.arange(3, dtype=np.int32), (3,), (0,), ((0,),), rows=())
    tensor = np.zeros((3, network.hidden_size), np.float32)
    (computed,) = workers.carry_out(workers.coordinator.run(1, microbatch, tensor, workers.now))
    assert [address for address, _ in workers.sent(Run)] == [A]
    assert computed.logits.shape == (0, network.vocab_size)


def test_workers_on_one_host_are_greeted_one_after_another(workers, network):
    """Each measures itself at its first Hello; at the same time they would slow each other down."""
    addresses = ("box:1", "box:2", "other:1", "127.0.0.1:1")
    workers.answers = {(address, Hello): lambda _: [] for address in (LOCAL, *addresses)}
    load(workers, order(network, *addresses))
    assert [address for address, _ in workers.sent(Hello)] == [LOCAL, "box:1", "other:1"]
    for address in ("box:1", LOCAL):
        link = workers.coordinator.links[address]
        workers.happen(Got(address, Envelope(welcome(), {}, link.epoch, link.sequence_in)))
    assert [address for address, _ in workers.sent(Hello)][3:] == ["box:2", "127.0.0.1:1"]


def test_an_attempt_that_ends_is_not_the_end(workers, network):
    """Who refuses closes the connection, and the close may overtake the reason."""
    workers.mute = {A}
    load(workers, order(network, A, missing=Missing.REFUSE))
    workers.happen(workers.failed(A, "answers, but not as a worker", final=False))
    workers.happen(workers.lost(A, "the connection broke"))
    (failed,) = workers.happen(workers.failed(A, "worker a:50052 is leased"))
    assert str(failed.error) == "worker a:50052 is leased"


def test_a_refusal_is_passed_on(workers, network):
    workers.answers[(A, Hello)] = lambda _: [Refused("runs ollama-zmq 9 (protocol 9)", "9", 9)]
    (failed,) = load(workers, order(network, A, missing=Missing.REFUSE))
    assert str(failed.error) == f"{A}: runs ollama-zmq 9 (protocol 9)"


def test_a_worker_that_breaks_the_protocol_under_a_load_is_not_asked_again(workers, network):
    workers.answers[(A, Define)] = lambda m: [Defined(m.program, ("no.such.weight",))]
    (loaded,) = load(workers, order(network, A, B))
    assert [stage.worker for stage in loaded.stages] == [B, LOCAL]
    assert [effect.address for effect in workers.seen if isinstance(effect, Connect)] == [LOCAL, A, B]


def test_the_loop_wakes_up_for_the_first_deadline(workers, network):
    load(workers, order(network, A, B))
    run(workers, decode_step())
    deadline = min(flight.deadline for flight in model_of(workers).in_flight.values())
    assert workers.coordinator.next_deadline(deadline - 0.25) == deadline


def test_a_lost_stage_loses_the_model_and_the_next_load_runs_on_what_is_left(workers, network):
    load(workers, order(network, A, B))
    workers.mute = {B}
    workers.carry_out(run(workers, decode_step()))
    (lost,) = workers.happen(workers.lost(B, "worker b:50052 is gone: the connection broke"))
    assert isinstance(lost, ModelLost)
    assert isinstance(lost.error, StageLost)
    assert B in str(lost.error)
    assert [address for address, _ in workers.sent(Release)] == [A, LOCAL]

    assert load(workers, order(network, A, B)) == []  # B is tried again
    (loaded,) = workers.happen(workers.failed(B, "nobody listens")) or workers.happen(Tick())
    assert [s.worker for s in loaded.stages] == [A, LOCAL]


def test_with_every_worker_gone_the_model_runs_here(workers, network):
    load(workers, order(network, A))
    workers.happen(workers.failed(A, "gone"))
    workers.mute = {A}
    load(workers, order(network, A))
    (loaded,) = workers.happen(workers.failed(A, "gone"))
    assert [s.part for s in loaded.stages] == ["whole"]


def test_a_returned_worker_has_a_new_epoch_and_is_used(workers, network):
    load(workers, order(network, A))
    before = workers.coordinator.links[A].epoch
    workers.happen(workers.failed(A, "gone"))
    (loaded,) = load(workers, order(network, A))
    assert workers.coordinator.links[A].epoch > before
    assert [s.worker for s in loaded.stages] == [A, LOCAL]


def test_a_message_of_an_older_epoch_is_dropped(workers, network):
    load(workers, order(network, A))
    stale = Got(A, Envelope(Pong(0), {"payload": np.zeros(0, np.uint8)}, epoch=0, seq=0))
    assert workers.coordinator.handle(stale, workers.now) == []


def test_a_gap_in_the_sequence_costs_the_connection(workers, network):
    load(workers, order(network, A))
    link = workers.coordinator.links[A]
    gap = Envelope(Pong(0), {"payload": np.zeros(0, np.uint8)}, epoch=link.epoch, seq=link.sequence_in + 1)
    (lost,) = workers.happen(Got(A, gap))
    assert isinstance(lost, ModelLost)


def test_missing_weights_are_sent_in_order_and_progress_is_told(workers, network):
    workers.lacking = {A}
    effects = load(workers, order(network, A))
    chunks = [e for e in workers.seen if isinstance(e, SendChunk)]
    sources = workers.sent(Define)[0][1].sources
    assert [c.source.name for c in chunks] == [s.name for s in sources]
    assert sum(c.nbytes for c in chunks) == sum(s.nbytes for s in sources)
    assert [type(effect) for effect in effects] == [ModelLoaded]
    [upload] = model_state(model_of(workers)).uploads
    assert upload.sent_bytes == upload.total_bytes == sum(s.nbytes for s in sources)


@pytest.mark.parametrize("addresses", [(), (A,)])
def test_only_the_local_device_is_told_how_many_threads_a_request_wants(workers, network, addresses):
    load(workers, replace(order(network, *addresses), num_thread=3))
    assert {(address, define.threads) for address, define in workers.sent(Define)} == {
        (LOCAL, 3),
        *((address, 0) for address in addresses),
    }


def test_a_weight_that_fits_no_budget_is_named_with_the_budgets(workers, network):
    workers.answers[(A, Hello)] = lambda _: [welcome(memory_budget=1000)]
    workers.answers[(LOCAL, Hello)] = lambda _: [welcome(memory_budget=2000)]
    (failed,) = load(workers, order(network, A))
    assert isinstance(failed.error, OutOfDeviceMemory)
    assert "a:50052 1 KB" in str(failed.error)


def test_what_a_small_worker_cannot_hold_runs_here(workers, network):
    workers.answers[(A, Hello)] = lambda _: [welcome(memory_budget=1000)]
    (loaded,) = load(workers, order(network, A))
    assert [s.part for s in loaded.stages] == ["whole"]


def test_a_worker_that_cannot_load_fails_the_load_and_the_others_forget(workers, network):
    workers.answers[(B, Define)] = lambda m: [Failed(m.program, -1, "OutOfDeviceMemory", "needs 9 GB of 1 GB")]
    effects = load(workers, order(network, A, B))
    (failed,) = [e for e in effects if isinstance(e, LoadFailed)]
    assert isinstance(failed.error, OutOfDeviceMemory)
    assert str(failed.error) == f"worker {B}: needs 9 GB of 1 GB"
    assert (A in [address for address, _ in workers.sent(Release)], workers.coordinator.pipelines) == (True, {})


def test_a_load_begins_again_when_a_worker_dies_under_it(workers, network):
    workers.answers[(B, Define)] = lambda _: []
    load(workers, order(network, A, B))
    workers.mute = {B}
    workers.happen(workers.lost(B, "worker b:50052 is gone"))
    (loaded,) = workers.happen(workers.failed(B, "nobody listens"))
    assert [s.worker for s in loaded.stages] == [A, LOCAL]


def test_an_answer_to_a_load_that_began_anew_is_not_taken_for_one_of_now(workers, network):
    """The head is a stage of both; what was on its way is about another program."""
    workers.answers[(B, Define)] = workers.answers[(LOCAL, Define)] = lambda _: []
    load(workers, order(network, A, B))
    first = model_of(workers).stages[-1].program
    workers.mute = {B}
    workers.happen(workers.lost(B, "worker b:50052 is gone"))
    workers.happen(workers.failed(B, "nobody listens"))
    second = model_of(workers).stages[-1].program
    assert first != second
    assert workers.say(LOCAL, Defined(first, ())) == workers.say(LOCAL, Ready(first, 1)) == []
    assert model_of(workers).phase is Phase.DEFINING
    workers.say(LOCAL, Defined(second, ()))
    workers.mute = {A, LOCAL}
    workers.say(LOCAL, Ready(second, 1))
    assert model_of(workers).phase is Phase.WARMING


def test_a_worker_that_dies_under_a_load_twice_is_left_out_of_it_though_it_is_back_at_once(workers, network):
    workers.answers[(A, Define)] = lambda _: []
    load(workers, order(network, A))
    assert workers.happen(workers.lost(A, "worker a:50052 is gone")) == []  # it may have been started again
    assert len(workers.sent(Define)) == 4
    (loaded,) = workers.happen(workers.lost(A, "worker a:50052 is gone"))
    assert [s.part for s in loaded.stages] == ["whole"]
    assert workers.coordinator.state().models[0].missing == ("worker a:50052 is gone",)


def test_a_load_that_waits_for_its_workers_fails_when_one_dies_under_it_each_time(workers, network):
    workers.answers[(A, Define)] = lambda _: []
    load(workers, order(network, A, missing=Missing.WAIT))
    outcomes = [workers.happen(workers.lost(A, "worker a:50052 is gone")) for _ in range(3)]
    assert outcomes[:2] == [[], []]
    assert isinstance(outcomes[2][0].error, StageLost)


def test_a_failed_step_leaves_the_model_standing(workers, network):
    load(workers, order(network, A))
    workers.answers[(A, Run)] = lambda m: [Failed(m.program, m.microbatch, "ShapeError", "pages[0] reach 9 of 2")]
    (failed,) = workers.carry_out(run(workers, decode_step(5)))
    assert (failed.microbatch, type(failed), type(failed.error)) == (5, StepFailed, ShapeError)
    del workers.answers[(A, Run)]
    (computed,) = workers.carry_out(run(workers, decode_step(6)))
    assert computed.microbatch == 6


def test_what_is_measured_goes_on_after_a_step_failed(workers, network):
    load(workers, order(network, A))
    workers.answers[(A, Run)] = lambda m: [Failed(m.program, m.microbatch, "ShapeError", "pages[0] reach 9 of 2")]
    prompt = Microbatch(5, np.arange(3, dtype=np.int32), (3,), (0,), ((0,),), rows=(2,))
    workers.carry_out(workers.coordinator.run(1, prompt, np.zeros((3, network.hidden_size), np.float32), workers.now))
    del workers.answers[(A, Run)]
    workers.carry_out(run(workers, decode_step(6)))
    assert model_state(model_of(workers)).measured.decode_tokens_per_s > 0


def test_a_load_that_fails_before_it_begins_leaves_the_loaded_model(workers, network):
    load(workers, order(network, A))
    workers.mute = {B}
    load(workers, order(network, A, B, model=2, replaces=1, missing=Missing.REFUSE))
    (failed,) = workers.happen(workers.failed(B, "nobody listens at b:50052"))
    assert (type(failed), failed.model) == (LoadFailed, 2)
    (computed,) = workers.carry_out(run(workers, decode_step(3)))
    assert computed.microbatch == 3


def test_what_is_replaced_is_dropped_when_the_new_plan_stands(workers, network):
    load(workers, order(network, A))
    assert [type(effect) for effect in load(workers, order(network, B, model=2, replaces=1))] == [Replaced, ModelLoaded]
    assert list(workers.coordinator.pipelines) == [2]


def test_greeting_workers_while_a_model_loads_drops_none_of_them(workers, network):
    workers.mute = {A}
    load(workers, order(network, A))
    workers.carry_out(workers.coordinator.join((B,), workers.now))
    assert set(workers.coordinator.links) == {LOCAL, A, B}


def test_a_worker_that_has_forgotten_us_is_lost(workers, network):
    load(workers, order(network, A))
    workers.answers[(A, Run)] = lambda m: [Failed(m.program, m.microbatch, "StageLost", "no lease: say Hello")]
    (lost,) = workers.carry_out(run(workers, decode_step()))
    assert isinstance(lost, ModelLost)
    assert str(lost.error).startswith(f"worker {A}: no lease")


def test_a_silent_step_passes_its_deadline(workers, network):
    load(workers, order(network, A))
    workers.mute = {A}
    workers.carry_out(run(workers, decode_step()))
    deadline = workers.coordinator.next_deadline(1e9)
    workers.now = deadline + 0.1
    (lost,) = workers.happen(Tick())
    assert "did not answer a step" in str(lost.error)


def test_a_larger_step_has_more_time(workers, network):
    load(workers, order(network, A))
    T = 16
    large = Microbatch(2, np.zeros(T, np.int32), lengths=(T,), positions=(0,), pages=((0,),), rows=(T - 1,))
    for microbatch in (decode_step(1), large):
        run(workers, microbatch)
    one, more = [step.deadline - step.sent_at for step in model_of(workers).in_flight.values()]
    assert DEADLINE_S < one < more


def test_the_local_device_has_no_deadline(workers, network):
    load(workers, order(network))
    workers.mute = {LOCAL}
    workers.carry_out(run(workers, decode_step()))
    workers.now = 1e6
    assert workers.happen(Tick()) == []


def test_an_answer_that_nobody_waits_for_is_ignored(workers, network):
    load(workers, order(network, A))
    link = workers.coordinator.links[A]
    program = model_of(workers).stages[0].program
    late = Envelope(Ran(program, 99, 1, 1), {"output": np.zeros((1, 4), np.float32)}, link.epoch, link.sequence_in)
    assert workers.happen(Got(A, late)) == []


def test_idle_workers_are_pinged(workers, network):
    load(workers, order(network, A))
    workers.seen.clear()
    workers.now += 3.0
    workers.happen(Tick())
    assert A in [address for address, _ in workers.sent(Ping)]


def test_workers_that_are_not_in_a_new_list_are_let_go(workers, network):
    load(workers, order(network, A, B))
    load(workers, order(network, B, model=2, replaces=1))
    assert [address for address, _ in workers.sent(Bye)] == [A]
    assert set(workers.coordinator.links) == {LOCAL, B}


def test_joining_without_a_load_tells_who_answers(workers):
    (joined,) = workers.carry_out(workers.coordinator.join((A,), workers.now))
    assert joined == Joined((A,))
    state = workers.coordinator.state()
    assert [(w.address, w.status, w.memory_budget) for w in state.workers] == [
        (LOCAL, "ready", BUDGET),
        (A, "ready", BUDGET),
    ]
    assert state.workers[1].rtt_us > 0


def test_joining_others_leaves_the_stages_of_a_loaded_model(workers, network):
    load(workers, order(network, A))
    workers.carry_out(workers.coordinator.join((B,), workers.now))
    assert model_of(workers).phase is Phase.LOADED
    assert set(workers.coordinator.links) == {LOCAL, A, B}


def test_latencies_of_decode_steps_are_kept_per_stage(workers, network):
    load(workers, order(network, A))
    for number in range(5):
        workers.carry_out(run(workers, decode_step(number)))
    latency = model_state(model_of(workers)).stages[0].latency
    assert latency is not None
    assert (latency.compute.p50_us, latency.queue.p95_us, latency.steps) == (10, 1, 5)


def test_every_connection_has_an_epoch_of_its_own(workers, network):
    load(workers, order(network, A, B))
    workers.happen(workers.failed(A, "gone"))
    load(workers, order(network, A, B))
    epochs = [e.epoch for e in workers.seen if isinstance(e, Connect)]
    assert len(epochs) == len(set(epochs))
    assert [e.address for e in workers.seen if isinstance(e, Disconnect)] == [A]


def test_upload_credit_is_small_while_steps_are_in_flight():
    upload = Upload()
    upload.add(b"p", WeightSource("w", "", 0, 10 * CHUNK_BYTES + 5))
    assert sum(c.nbytes for c in upload.next_chunks(busy=False)) == IDLE_CREDIT_BYTES
    upload.acknowledged(IDLE_CREDIT_BYTES)
    assert [c.nbytes for c in upload.next_chunks(busy=True)] == [CHUNK_BYTES]
    assert upload.next_chunks(busy=True) == []
    assert BUSY_CREDIT_BYTES < CHUNK_BYTES


# Several models


def test_two_models_of_the_same_ops_have_programs_of_their_own(workers, network):
    """Both models' programs would have one id if they were named by their ops alone."""
    load(workers, order(network, A, model=1))
    load(workers, order(network, A, model=2))
    programs = [stage.program for model in (1, 2) for stage in model_of(workers, model).stages]
    assert len(set(programs)) == 4
    for model in (1, 2):
        (computed,) = workers.carry_out(run(workers, decode_step(5), model))
        assert (computed.model, computed.microbatch) == (model, 5)


def test_what_waited_behind_a_step_of_another_model_tells_the_worker_s_turn_and_not_the_way(workers, network):
    load(workers, order(network, A, model=1))
    load(workers, order(network, A, model=2))
    first, second = run(workers, decode_step(), 1), run(workers, decode_step(), 2)
    workers.now += 1.0
    (ahead,), (behind,) = workers.carry_out(first), workers.carry_out(second)
    assert ahead.times[0].transfer_s == pytest.approx(1.001 - 10e-6)
    assert ahead.times[0].overhead_s is None
    assert behind.times[0].transfer_s is None
    assert behind.times[0].overhead_s == pytest.approx(0.002 - 10e-6)  # since the answer before: also of the head's
    (alone,) = workers.carry_out(run(workers, decode_step(), 2))
    assert alone.times[0].transfer_s == pytest.approx(0.001 - 10e-6)


def test_steps_that_failed_or_were_dropped_are_not_at_the_worker_any_more(workers, network):
    load(workers, order(network, A, model=1))
    load(workers, order(network, A, model=2))
    workers.answers[A, Run] = lambda message: [Failed(message.program, message.microbatch, "OpError", "no")]
    workers.carry_out(run(workers, decode_step(), 1))
    del workers.answers[A, Run]
    run(workers, decode_step(), 1)
    workers.carry_out(workers.coordinator.unload(1))
    (alone,) = workers.carry_out(run(workers, decode_step(), 2))
    assert alone.times[0].transfer_s is not None


def test_a_lost_worker_ends_only_the_models_that_used_it(workers, network):
    load(workers, order(network, A, model=1))
    load(workers, order(network, B, model=2))
    (lost,) = workers.happen(workers.lost(A, "worker a:50052 is gone"))
    assert (type(lost), lost.model) == (ModelLost, 1)
    (computed,) = workers.carry_out(run(workers, decode_step(), 2))
    assert computed.model == 2


def test_a_load_that_fails_leaves_the_other_models(workers, network):
    load(workers, order(network, A, model=1))
    workers.answers[(A, Define)] = lambda m: [Failed(m.program, -1, "OutOfDeviceMemory", "needs 9 GB of 1 GB")]
    (failed,) = load(workers, order(network, A, model=2))
    assert (type(failed), failed.model) == (LoadFailed, 2)
    (computed,) = workers.carry_out(run(workers, decode_step(), 1))
    assert computed.model == 1


def test_a_failure_that_names_no_program_ends_the_loads_on_that_worker(workers, network):
    workers.answers[(A, Define)] = workers.answers[(B, Define)] = lambda _: []
    load(workers, order(network, A, model=1))
    load(workers, order(network, B, model=2))
    link = workers.coordinator.links[A]
    failed = Envelope(Failed(b"", -1, "RemoteProtocolError", "message 7 did not arrive"), {}, link.epoch, 0)
    (ended,) = workers.happen(Got(A, msgspec.structs.replace(failed, seq=link.sequence_in)))
    assert (type(ended), ended.model) == (LoadFailed, 1)
    assert model_of(workers, 2).phase is Phase.DEFINING


def test_weights_of_a_new_model_come_within_the_small_credit_while_another_is_stepping(workers, network):
    load(workers, order(network, A, model=1))
    workers.coordinator.run(1, decode_step(), np.zeros((1, network.hidden_size), np.float32), workers.now)
    workers.lacking = {B}
    workers.seen.clear()
    effects = workers.coordinator.load(order(network, B, model=2), workers.now)
    while effects:
        assert sum(effect.nbytes for effect in effects if isinstance(effect, SendChunk)) <= BUSY_CREDIT_BYTES
        effects = workers.step(effects)
    assert model_of(workers, 2).phase is Phase.LOADED
    [upload] = model_state(model_of(workers, 2)).uploads
    assert upload.sent_bytes == upload.total_bytes > BUSY_CREDIT_BYTES


def test_a_model_holds_what_its_worker_counted_and_the_plan_s_need_before(workers, network):
    workers.answers[(LOCAL, Define)] = lambda _: []
    load(workers, order(network, A))
    assert model_of(workers).held_on(A) == 1000
    assert model_of(workers).held_on(LOCAL) == model_of(workers).stages[1].need
    state = workers.coordinator.state()
    assert [(worker.held_bytes, worker.layers) for worker in state.workers][1] == (1000, "0-3")


def test_of_two_loads_that_race_for_the_last_memory_one_wins(workers, network):
    layers, head = load_plan(network)
    workers.answers[(A, Hello)] = lambda _: [welcome(memory_budget=int(layers.need * 1.2))]
    workers.answers[(LOCAL, Hello)] = lambda _: [welcome(memory_budget=head.need * 3)]
    workers.answers[(A, Define)] = workers.answers[(LOCAL, Define)] = lambda _: []
    first = workers.coordinator.load(order(network, A, model=1), workers.now)
    second = workers.coordinator.load(order(network, A, model=2), workers.now)
    (failed,) = workers.carry_out(first + second)
    assert (type(failed), failed.model, type(failed.error)) == (LoadFailed, 2, OutOfDeviceMemory)
    assert model_of(workers, 1).phase is Phase.DEFINING


def test_a_load_that_needs_the_memory_of_others_names_them_and_they_stay(workers, network):
    layers, head = load_plan(network)
    workers.answers[(A, Hello)] = lambda _: [welcome(memory_budget=1000 + layers.need - 1)]
    workers.answers[(LOCAL, Hello)] = lambda _: [welcome(memory_budget=head.need * 3)]
    load(workers, order(network, A, model=1))
    (failed,) = load(workers, order(network, A, model=2, idle=(1,)))
    assert (type(failed.error), failed.error.facts) == (MemoryInUse, {"models": {1}})
    workers.carry_out(workers.coordinator.unload(1))
    assert isinstance(load(workers, order(network, A, model=3, idle=(1,)))[0], ModelLoaded)


def test_a_worker_that_finds_no_memory_though_the_plan_did_lets_others_go_first(workers, network):
    """The plan estimates; the worker counts. Whoever holds memory there is named, and nobody else."""
    load(workers, order(network, A, model=1))
    load(workers, order(network, B, model=2))
    workers.answers[(A, Define)] = lambda m: [Failed(m.program, -1, "OutOfDeviceMemory", "needs 9 GB of 1 GB")]
    (failed,) = load(workers, order(network, A, model=3, idle=(2, 1)))
    assert (type(failed.error), failed.error.facts) == (MemoryInUse, {"models": {1}})
    workers.carry_out(workers.coordinator.unload(1))
    (failed,) = load(workers, order(network, A, model=4, idle=(2,)))
    assert (type(failed.error), str(failed.error)) == (OutOfDeviceMemory, f"worker {A}: needs 9 GB of 1 GB")


def test_an_unloaded_model_gives_its_memory_back(workers, network):
    load(workers, order(network, A, model=1))
    workers.carry_out(workers.coordinator.unload(1))
    assert [address for address, _ in workers.sent(Release)] == [A, LOCAL]
    assert [worker.held_bytes for worker in workers.coordinator.state().workers] == [0, 0]
    assert workers.coordinator.unload(1) == []


def load_plan(network: Network) -> tuple[Stage, ...]:
    """The stages of a model that has a worker and this machine to itself."""
    alone = FakeWorkers(Coordinator("beef"))
    load(alone, order(network, A))
    return model_of(alone).stages


def test_what_became_of_an_older_connection_does_not_concern_the_one_that_stands(workers, network):
    load(workers, order(network, A))
    stale = [workers.failed(A, "takes no more messages"), workers.lost(A, "the connection broke"), workers.attached(A)]
    workers.happen(stale[0])
    (loaded, *_) = load(workers, order(network, A, model=2))
    assert isinstance(loaded, ModelLoaded)
    assert [workers.happen(event) for event in stale] == [[], [], []]
    assert workers.coordinator.links[A].status is Status.READY


def test_a_step_that_no_frame_can_carry_fails_alone_and_a_program_fails_its_load(workers, network):
    load(workers, order(network, A))
    epoch, error = workers.coordinator.links[A].epoch, LocalProtocolError("too many pages")
    (send,) = run(workers, decode_step())
    step = send.envelope.message
    (failed,) = workers.happen(Unsendable(A, epoch, step.program, step.microbatch, error))
    assert (type(failed), failed.error) == (StepFailed, error)
    (computed,) = workers.carry_out(run(workers, decode_step(2)))
    assert isinstance(computed, Computed)

    workers.answers[A, Define] = lambda define: []
    load(workers, order(network, A, model=2))
    program = workers.sent(Define)[-1][1].program
    (failed,) = workers.happen(Unsendable(A, epoch, program, -1, error))
    assert (type(failed), failed.model, failed.error) == (LoadFailed, 2, error)
