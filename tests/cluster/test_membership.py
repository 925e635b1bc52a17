"""Which workers a load goes over, how long it waits for the others, and when a lease ends. Times are given."""

from __future__ import annotations

import pytest

from ollama_zmq.cluster import loading
from ollama_zmq.cluster.coordinator import Coordinator
from ollama_zmq.cluster.events import (
    Connect,
    ConnectionFailed,
    Got,
    Joined,
    LoadFailed,
    ModelLoaded,
    ModelLost,
    Tick,
)
from ollama_zmq.cluster.link import JOIN_LIMIT_S, REFUSED_GRACE_S, Status
from ollama_zmq.cluster.links import LEASE_IDLE_S
from ollama_zmq.cluster.loading import LOAD_STALL_S
from ollama_zmq.cluster.membership import CONNECT_GRACE_S, LOST_GRACE_S, RETRY_S, WAIT_LIMIT_S
from ollama_zmq.cluster.stages import LOCAL, Missing
from ollama_zmq.errors import OutOfDeviceMemory, StageLost, Unreachable
from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import Bye, Define, Defined, Hello, Ready, Refused, Run
from tests.cluster.fake_workers import BUDGET, FakeWorkers, welcome
from tests.cluster.steps import A, B, load, model_of, order

C = "c:50052"
HERE, THERE = "tcp://10.0.0.10:50052", "tcp://10.0.0.11:50052"
BAR_S = 3.0  # after the others are ready


def later(workers: FakeWorkers, seconds: float) -> list:
    """Let time pass in steps of a tick; return what came of it."""
    until, came = workers.now + seconds, []
    while workers.now < until:
        workers.now += 0.1
        came += workers.happen(Tick())
    return came


def stages_of(loaded: object) -> list[str]:
    assert isinstance(loaded, ModelLoaded)
    return [stage.worker for stage in loaded.stages]


def refused(workers: FakeWorkers, address: str) -> ConnectionFailed:
    return workers.failed(address, f"nobody listens at {address}", final=False)


@pytest.mark.parametrize("fault", ["refused", "unknown name", "silent", "let in and silent"])
def test_a_first_load_goes_over_the_workers_that_are_there_whatever_is_wrong_with_another(workers, network, fault):
    if fault == "let in and silent":
        workers.answers[(C, Hello)] = lambda _: []
    else:
        workers.mute = {C}
    came = load(workers, order(network, A, C, B))
    if fault == "unknown name":
        came += workers.happen(workers.failed(C, "cannot resolve worker c:50052: name or service not known"))
    if fault == "refused":
        came += workers.happen(refused(workers, C))
    limit_s = JOIN_LIMIT_S + 0.2 if fault == "let in and silent" else BAR_S
    came += later(workers, limit_s)
    (loaded,) = came
    assert stages_of(loaded) == [A, B, LOCAL]
    (missing,) = workers.coordinator.state().models[0].missing
    assert C in missing


def test_workers_that_are_ready_are_not_waited_for(workers, network):
    (loaded,) = load(workers, order(network, A, B))
    assert stages_of(loaded) == [A, B, LOCAL]
    assert workers.coordinator.state().models[0].missing == ()


def test_a_connection_that_comes_about_in_time_has_a_part(workers, network):
    workers.mute = {B}
    assert load(workers, order(network, A, B)) == []
    assert workers.happen(refused(workers, B)) == []
    assert later(workers, CONNECT_GRACE_S / 2) == []
    workers.mute = set()
    (loaded,) = workers.happen(workers.attached(B))
    assert stages_of(loaded) == [A, B, LOCAL]


def test_a_worker_that_let_us_in_is_waited_for_while_others_on_its_host_measure_themselves(workers, network):
    """Each takes longer than a connection would be waited for."""
    near = "box:1", "box:2", "box:3"
    answers = {(address, Hello): (lambda _: []) for address in near}
    workers.answers = dict(answers)
    assert load(workers, order(network, *near)) == []
    came = []
    for address in near:
        came += later(workers, CONNECT_GRACE_S + 1.0)
        assert workers.coordinator.links[address].status is Status.HANDSHAKE
        del workers.answers[(address, Hello)]
        came += workers.say(address, welcome())
    (loaded,) = came
    assert stages_of(loaded) == [*near, LOCAL]


def test_a_worker_known_to_be_lost_is_waited_for_no_longer_than_it_takes_to_see_it(workers, network):
    load(workers, order(network, A, B))
    workers.mute = {B}
    workers.happen(workers.lost(B, "worker b:50052 is gone"))
    assert load(workers, order(network, A, B)) == []  # it is tried again
    (loaded,) = workers.happen(refused(workers, B))
    assert stages_of(loaded) == [A, LOCAL]
    workers.carry_out(workers.coordinator.unload(1))
    assert load(workers, order(network, A, B, model=2)) == []
    (loaded,) = later(workers, LOST_GRACE_S + 0.2)  # swallowed: nobody says anything
    assert stages_of(loaded) == [A, LOCAL]


def test_workers_on_their_way_in_are_waited_for_though_another_does_not_answer(workers, network):
    workers.mute = {B}
    workers.answers[(C, Hello)] = lambda _: []
    assert load(workers, order(network, A, B, C)) == []
    assert later(workers, CONNECT_GRACE_S + 1.0) == []
    del workers.answers[(C, Hello)]
    (loaded,) = workers.say(C, welcome())
    assert stages_of(loaded) == [A, C, LOCAL]


def test_a_worker_that_reads_its_part_from_a_slow_disk_has_the_time_for_it(workers, network, monkeypatch):
    monkeypatch.setattr(loading, "SLOW_DISK_BYTES_PER_S", 1.0)
    workers.answers[(B, Define)] = lambda m: [Defined(m.program, ())]
    assert load(workers, order(network, A, B)) == []
    assert later(workers, LOAD_STALL_S + 5.0) == []


def test_a_program_that_is_accepted_is_progress(workers, network):
    workers.answers[(B, Define)] = lambda _: []
    assert load(workers, order(network, A, B)) == []
    assert later(workers, LOAD_STALL_S - 1.0) == []
    (program,) = [stage.program for stage in model_of(workers).stages if stage.address == B]
    assert workers.say(B, Defined(program, ())) == []
    assert later(workers, LOAD_STALL_S - 1.0) == []


def row_of(workers: FakeWorkers, address: str) -> tuple[str, str]:
    rows = {row.address: row for row in workers.coordinator.state(listed={A: "", B: "", C: ""}).workers}
    return rows[address].status, rows[address].detail


def missing(workers: FakeWorkers) -> tuple[str, ...]:
    return workers.coordinator.state().models[0].missing


def test_a_model_names_who_is_missing_in_the_words_of_that_workers_row_whenever_they_change(workers, network):
    workers.mute = {B}
    load(workers, order(network, A, B))
    later(workers, CONNECT_GRACE_S + 0.2)
    (silent,) = missing(workers)
    assert silent.startswith(f"no answer from {B} yet")
    workers.happen(workers.failed(B, f"worker {B} is leased"))  # the probe ends after the load has begun
    assert missing(workers) == (f"worker {B} is leased",)
    assert row_of(workers, B) == ("lost", f"worker {B} is leased")


def test_why_a_worker_was_lost_is_said_until_something_newer_is_known(workers, network):
    workers.mute = {B}
    load(workers, order(network, A, B))
    workers.happen(workers.failed(B, f"worker {B} is leased"))
    load(workers, order(network, A, B, model=2, replaces=1))
    later(workers, LOST_GRACE_S + 0.2)  # swallowed this time
    assert row_of(workers, B) == ("connecting", f"worker {B} is leased")
    assert missing(workers) == (f"worker {B} is leased",)


def test_why_a_worker_was_lost_is_known_though_no_load_named_it_in_between(workers, network):
    workers.mute = {B}
    load(workers, order(network, A, B))
    workers.happen(workers.failed(B, f"worker {B} is leased"))
    load(workers, order(network, A, model=2, replaces=1))
    load(workers, order(network, A, B, model=3, replaces=2))
    later(workers, LOST_GRACE_S + 0.2)
    assert missing(workers) == (f"worker {B} is leased",)


def test_a_worker_that_came_too_late_is_said_to_be_there_and_given_back_or_not(workers, network):
    workers.mute = {B}
    load(workers, order(network, A, B))
    later(workers, BAR_S)
    workers.mute = set()
    workers.happen(workers.attached(B))
    there = (f"worker {B} is there now: it is used from the next load of the model on",)
    assert (missing(workers), row_of(workers, B)) == (there, ("ready", ""))
    later(workers, LEASE_IDLE_S + 1.0)
    assert (missing(workers), row_of(workers, B)) == (there, ("idle", ""))


def test_workers_are_shown_in_the_order_of_the_list_whoever_was_connected_first(workers, network):
    load(workers, order(network, C, B))
    shown = [row.address for row in workers.coordinator.state(listed={A: "", B: "", C: ""}).workers]
    assert shown == [LOCAL, A, B, C]


def test_a_worker_that_came_too_late_is_used_by_the_next_load(workers, network):
    workers.mute = {B}
    load(workers, order(network, A, B))
    later(workers, BAR_S)
    workers.mute = set()
    workers.happen(workers.attached(B))
    (_, loaded) = load(workers, order(network, A, B, model=2, replaces=1))
    assert stages_of(loaded) == [A, B, LOCAL]


def test_the_load_runs_here_when_no_worker_is_there(workers, network):
    workers.mute = {A, B}
    load(workers, order(network, A, B))
    (loaded,) = later(workers, BAR_S)
    assert stages_of(loaded) == [LOCAL]


def test_what_nothing_that_is_left_can_hold_fails_and_names_the_missing(workers, network):
    workers.mute = {A}
    workers.answers[(LOCAL, Hello)] = lambda _: [welcome(memory_budget=2000)]
    load(workers, order(network, A))
    workers.happen(refused(workers, A))
    (failed,) = later(workers, BAR_S)
    assert isinstance(failed.error, OutOfDeviceMemory)
    assert str(failed.error).endswith("; missing: nobody listens at a:50052")


def test_the_policy_refuse_fails_the_load_and_names_who_is_missing(workers, network):
    workers.mute = {B}
    load(workers, order(network, A, B, missing=Missing.REFUSE))
    assert workers.happen(refused(workers, B)) == []
    workers.now += REFUSED_GRACE_S
    (failed,) = workers.happen(refused(workers, B))
    assert (type(failed), type(failed.error), str(failed.error)) == (LoadFailed, Unreachable, f"nobody listens at {B}")


def test_the_policy_wait_waits_and_tries_again(workers, network):
    workers.mute = {B}
    assert load(workers, order(network, A, B, missing=Missing.WAIT)) == []
    assert later(workers, 30.0) == []
    tries = [e for e in workers.seen if isinstance(e, Connect) and e.address == B]
    assert 30.0 / (JOIN_LIMIT_S + 2 * RETRY_S) < len(tries) < 30.0 / RETRY_S
    workers.mute = set()
    (loaded,) = later(workers, JOIN_LIMIT_S + RETRY_S + 1)
    assert stages_of(loaded) == [A, B, LOCAL]


def test_the_policy_wait_ends(workers, network):
    workers.mute = {B}
    load(workers, order(network, A, B, missing=Missing.WAIT))
    (failed,) = later(workers, WAIT_LIMIT_S + JOIN_LIMIT_S + RETRY_S)
    assert B in str(failed.error)


def test_a_load_while_this_machine_s_own_device_is_not_ready_says_that_and_not_that_memory_lacks(workers, network):
    workers.answers[(LOCAL, Hello)] = lambda _: [Refused("it is being measured", "9", 9)]
    (failed,) = load(workers, order(network))
    assert (type(failed.error), failed.error.facts) == (StageLost, {"worker": LOCAL})
    assert str(failed.error) == "this machine's own device is not ready: local: it is being measured"


# One worker, two names


def test_two_addresses_of_one_endpoint_are_one_worker(workers, network):
    workers.coordinator.locate({A: (HERE,), B: ("tcp://[::10]:50052", HERE)})
    (loaded,) = load(workers, order(network, B))
    assert stages_of(loaded) == [B, LOCAL]
    (_, loaded) = load(workers, order(network, A, C, model=2, replaces=1))
    assert stages_of(loaded) == [B, C, LOCAL]
    assert [e.address for e in workers.seen if isinstance(e, Connect)] == [LOCAL, B, C]


def test_a_list_that_names_a_worker_twice_uses_it_once(workers, network):
    workers.coordinator.locate({A: (HERE,), B: (HERE,)})
    (loaded,) = load(workers, order(network, A, B))
    assert stages_of(loaded) == [A, LOCAL]


def test_a_worker_is_known_again_by_its_id_under_another_address(workers, network):
    workers.answers[(A, Hello)] = workers.answers[(B, Hello)] = lambda _: [welcome(id="0123abcd")]
    load(workers, order(network, A))
    lost, loaded = load(workers, order(network, B, model=2))
    assert (lost.model, "worker a:50052 is b:50052 now" in str(lost.error)) == (1, True)
    assert stages_of(loaded) == [B, LOCAL]
    (_, loaded) = load(workers, order(network, A, model=3, replaces=2))
    assert stages_of(loaded) == [B, LOCAL]


def test_a_name_that_leads_where_another_did_before_is_a_worker_of_its_own(workers, network):
    workers.coordinator.locate({A: (HERE,)})
    load(workers, order(network, A))
    workers.coordinator.locate({A: (THERE,), B: (HERE,)})  # A's machine has another address now, and B has that of A
    (_, loaded) = load(workers, order(network, A, B, model=2, replaces=1))
    assert stages_of(loaded) == [A, B, LOCAL]


def test_a_machine_that_took_the_address_of_another_is_a_worker_of_its_own(workers, network):
    workers.answers[(A, Hello)] = workers.answers[(B, Hello)] = lambda _: [welcome(id="0123abcd")]
    workers.coordinator.locate({A: (HERE,)})
    load(workers, order(network, A))
    workers.carry_out(workers.coordinator.unload(1))
    later(workers, LEASE_IDLE_S + 0.5)  # A is given back; its machine is B from now on
    workers.coordinator.locate({B: (THERE,)})
    load(workers, order(network, B, model=2))
    workers.answers[(A, Hello)] = lambda _: [welcome(id="4567cdef")]
    workers.coordinator.locate({A: (HERE,), B: (THERE,)})
    (_, loaded) = load(workers, order(network, A, B, model=3, replaces=2))
    assert stages_of(loaded) == [A, B, LOCAL]


def test_where_an_address_leads_is_known_while_it_cannot_be_looked_up_and_forgotten_when_nobody_uses_it(workers):
    links = workers.coordinator.links
    workers.carry_out(workers.coordinator.join((A,), workers.now))
    workers.coordinator.locate({A: (HERE,), C: (THERE,)})
    workers.coordinator.locate({A: (), B: (HERE,)})
    assert links.one_name_each((A, B)) == (A,)
    workers.coordinator.locate({B: (THERE,)})
    assert links.one_name_each((C, B)) == (C, B)


def test_workers_without_an_id_are_not_each_other(workers, network):
    (loaded,) = load(workers, order(network, A, B))
    assert stages_of(loaded) == [A, B, LOCAL]


# Leases


def test_a_lease_ends_some_seconds_after_the_last_model_left_the_worker(workers, network):
    load(workers, order(network, A))
    workers.carry_out(workers.coordinator.unload(1))
    later(workers, LEASE_IDLE_S - 0.5)
    assert workers.sent(Bye) == []
    later(workers, 1.0)
    assert [address for address, _ in workers.sent(Bye)] == [A]
    assert set(workers.coordinator.links) == {LOCAL}


def test_a_worker_with_a_model_keeps_its_lease_and_the_next_load_has_it_at_once(workers, network):
    load(workers, order(network, A))
    later(workers, 10 * LEASE_IDLE_S)
    assert workers.sent(Bye) == []
    workers.carry_out(workers.coordinator.unload(1))
    later(workers, LEASE_IDLE_S - 1)
    (loaded,) = load(workers, order(network, A, model=2))
    assert stages_of(loaded) == [A, LOCAL]


def test_a_worker_that_the_plan_leaves_out_is_given_back(workers, network):
    workers.answers[(B, Hello)] = lambda _: [welcome(memory_budget=1000)]
    load(workers, order(network, A, B))
    later(workers, LEASE_IDLE_S + 0.5)
    assert [address for address, _ in workers.sent(Bye)] == [B]


def test_looking_connects_nobody_and_shows_who_is_listed(workers):
    state = workers.coordinator.state(listed={A: "", B: "cannot resolve worker b:50052"})
    assert [(w.address, w.status, w.detail) for w in state.workers] == [
        (LOCAL, "idle", ""),
        (A, "not tried", ""),
        (B, "lost", "cannot resolve worker b:50052"),
    ]
    assert workers.seen == []


def test_a_look_at_workers_ends_though_one_of_them_is_silent(workers):
    workers.mute = {B}
    assert workers.carry_out(workers.coordinator.join((A, B), workers.now)) == []
    assert later(workers, BAR_S) == [Joined((A, B))]
    assert [(w.address, w.status) for w in workers.coordinator.state().workers][1] == (A, "ready")


def test_a_look_does_not_give_up_the_workers_of_another(workers):
    workers.mute = {A, B}
    workers.carry_out(workers.coordinator.join((A,), workers.now))
    workers.carry_out(workers.coordinator.join((B,), workers.now))
    assert set(workers.coordinator.links) == {LOCAL, A, B}
    workers.mute = set()
    assert workers.happen(workers.attached(A)) == [Joined((A,))]
    assert workers.happen(workers.attached(B)) == [Joined((B,))]


def test_a_load_gives_back_the_workers_that_nobody_looks_at_any_more(workers, network):
    workers.mute = {A, B}
    workers.carry_out(workers.coordinator.join((A,), workers.now))
    (loaded,) = load(workers, order(network))
    assert stages_of(loaded) == [LOCAL]
    assert set(workers.coordinator.links) == {LOCAL, A}  # it is still looked at
    workers.happen(workers.failed(A, "nobody listens"))
    load(workers, order(network, model=2))
    assert set(workers.coordinator.links) == {LOCAL}


def test_a_lost_worker_stays_known_as_lost_while_nobody_names_it(workers, network):
    workers.mute = {A}
    load(workers, order(network, A))
    workers.happen(workers.failed(A, "silent"))
    load(workers, order(network, model=2, replaces=1))  # leaves it
    load(workers, order(network, A, model=3, replaces=2))
    effects = later(workers, LOST_GRACE_S + 0.2)
    assert stages_of(effects[-1]) == [LOCAL]


def test_a_worker_that_a_load_went_on_without_is_known_as_lost(workers, network):
    workers.mute = {A}
    load(workers, order(network, A))
    later(workers, BAR_S)
    load(workers, order(network, model=2, replaces=1))  # leaves it while it still connects
    load(workers, order(network, A, model=3, replaces=2))
    effects = later(workers, LOST_GRACE_S + 0.2)
    assert stages_of(effects[-1]) == [LOCAL]


def test_two_looks_at_once_both_end(workers):
    first = workers.coordinator.join((A,), workers.now)
    second = workers.coordinator.join((A, B), workers.now)
    came = workers.carry_out(first + second)
    assert sorted(came, key=str) == sorted([Joined((A,)), Joined((A, B))], key=str)
    assert BUDGET in {w.memory_budget for w in workers.coordinator.state().workers}


# Loads that make no progress


def test_a_load_that_gets_no_further_on_a_worker_goes_on_without_it(workers, network):
    workers.answers[(B, Define)] = lambda m: [Defined(m.program, ())]  # and never Ready
    assert load(workers, order(network, A, B)) == []
    assert later(workers, LOAD_STALL_S - 1) == []
    (loaded,) = later(workers, 3.0)
    assert stages_of(loaded) == [A, LOCAL]
    assert "got no further with loading tiny" in workers.coordinator.state().models[0].missing[0]


@pytest.mark.parametrize("missing", [Missing.REFUSE, Missing.WAIT])
@pytest.mark.parametrize("fault", ["stalls", "lies"])
def test_a_load_that_shall_not_go_on_without_a_worker_does_not(workers, network, missing, fault):
    if fault == "stalls":
        workers.answers[(B, Define)] = lambda m: [Defined(m.program, ())]  # and never Ready
    else:
        workers.lies[(B, Defined)] = lambda m: Defined(m.program, ("a weight of another model",))
    came = load(workers, order(network, A, B, missing=missing))
    came += later(workers, 4 * LOAD_STALL_S)
    (failed,) = came
    assert isinstance(failed, LoadFailed)
    assert B in str(failed.error)


def test_a_look_still_sees_its_workers_when_a_load_begins_at_the_same_moment(workers, network):
    workers.answers[(LOCAL, Hello)] = lambda _: []
    workers.carry_out(workers.coordinator.join((B,), workers.now))
    load(workers, order(network, A))
    link = workers.coordinator.links[LOCAL]
    effects = workers.coordinator.handle(Got(LOCAL, Envelope(welcome(), {}, link.epoch, 0)), workers.now)
    assert Joined((B,)) in effects
    assert [profile.address for profile in workers.coordinator.snapshot(1, (B,)).workers] == [B]


@pytest.mark.parametrize("stuck", ["reading", "the first token"])
def test_a_load_that_makes_no_progress_at_all_ends_with_words(network, stuck):
    workers = FakeWorkers(Coordinator("f00d", load_timeout_s=60.0))
    workers.answers[(LOCAL, Define if stuck == "reading" else Run)] = lambda _: []
    assert load(workers, order(network)) == []
    assert later(workers, 59.0) == []
    (failed,) = later(workers, 2.0)  # the file is of a size that a slow disk reads in less than one
    assert isinstance(failed, LoadFailed)
    assert str(failed.error) == (
        "loading tiny made no progress for 60 s; set OLLAMA_LOAD_TIMEOUT of the server higher, or to 0 for no limit"
    )
    del workers.answers[(LOCAL, Define if stuck == "reading" else Run)]
    (loaded,) = load(workers, order(network, model=2))
    assert later(workers, 120.0) == []  # what is loaded has no limit
    assert stages_of(loaded) == [LOCAL]


def test_a_part_that_is_ready_extends_the_time_of_a_load(network):
    workers = FakeWorkers(Coordinator("f00d", load_timeout_s=10.0))
    ready = {}
    for address in (A, LOCAL):
        workers.answers[(address, Define)] = lambda m, address=address: ready.update({address: m.program}) or []
    assert load(workers, order(network, A)) == []
    assert later(workers, 9.0) == []
    assert workers.say(A, Ready(ready[A], 1)) == []
    assert later(workers, 9.0) == []
    (failed,) = later(workers, 2.0)
    assert isinstance(failed, LoadFailed)


def test_progress_extends_the_time_of_a_load(workers, network):
    workers.lacking = {A}
    effects = workers.coordinator.load(order(network, A), workers.now)
    rounds = 0
    while effects and model_of(workers).phase.value != "loaded":
        workers.now += LOAD_STALL_S * 0.9
        effects = workers.step(effects) + workers.coordinator.handle(Tick(), workers.now)
        rounds += 1
        if rounds == 1:  # joining has limits of its own
            workers.now -= LOAD_STALL_S * 0.9
    assert model_of(workers).phase.value == "loaded"


def test_a_worker_that_is_stopped_takes_its_models_with_it_and_they_say_why(workers, network):
    load(workers, order(network, A, B))
    (lost,) = workers.say(A, Bye())
    assert isinstance(lost, ModelLost)
    assert f"worker {A} was stopped" in str(lost.error)


def test_a_bye_of_an_older_connection_ends_nothing(workers, network):
    load(workers, order(network, A, B))
    link = workers.coordinator.links[A]
    assert workers.happen(Got(A, Envelope(Bye(), epoch=link.epoch - 1, seq=0))) == []
    assert link.status is Status.READY
