"""Who gets which model, who waits, and when it goes."""

import asyncio
import math
from contextlib import AsyncExitStack

import pytest

from ollama_zmq.bus.loads import LoadRequest
from ollama_zmq.errors import MemoryInUse, OutOfDeviceMemory, ServerBusy, Unreachable
from ollama_zmq.server.scheduler import ModelScheduler
from tests.server.fake_broker import FakeBroker


class Timers:
    """Timers that fire when they are told to."""

    def __init__(self):
        self.running = []

    def call_later(self, delay, function):
        timer = Timer(self, delay, function)
        self.running.append(timer)
        return timer

    def fire(self):
        timer = self.running.pop()
        timer.function()


class Timer:
    def __init__(self, timers, delay, function):
        self.timers, self.delay, self.function = timers, delay, function

    def cancel(self):
        if self in self.timers.running:
            self.timers.running.remove(self)


class World:
    """A scheduler with a clock that stands still."""

    def __init__(self, store, **settings):
        self.broker, self.timers, self.now = FakeBroker(), Timers(), 1000.0
        self.model = store.get("tiny")
        self.scheduler = ModelScheduler(
            self.broker, clock=lambda: self.now, call_later=self.timers.call_later, **settings
        )

    def wanted(self, name="tiny", **fields):
        return LoadRequest(name=name, path=fields.pop("path", self.model.gguf_path), **{"num_ctx": 64} | fields)

    def other(self, name):
        """A request for the model of another file."""
        path = self.model.gguf_path.with_name(name)
        if not path.exists():
            path.hardlink_to(self.model.gguf_path)
        return self.wanted(name, path=path)

    @property
    def names(self):
        """The loaded models, those that were asked for first to the left."""
        return [model.request.name for model in self.broker.models]

    @property
    def is_idle(self):
        """Nothing is loaded, and nobody is loading."""
        return not (self.scheduler.residents or self.broker.models or self.scheduler._load_lock.locked())

    @property
    def resident(self):
        [resident] = self.scheduler.residents
        return resident

    def use(self, wanted=None, keep_alive_s=None):
        return self.scheduler.use(self.model, wanted or self.wanted(), keep_alive_s)


@pytest.fixture
def run(store):
    def run(scenario, **settings):
        async def main():
            await asyncio.wait_for(scenario(World(store, **settings)), timeout=5)

        asyncio.run(main())

    return run


async def settle():
    """Let everything run that can run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition):
    for _ in range(200_000):  # some seconds
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not happen")


def test_requests_for_the_same_model_share_it(run):
    async def scenario(world):
        async with world.use() as first, world.use() as second:
            assert first is second
            assert first.users == 2
        assert len(world.broker.loads) == 1

    run(scenario)


def test_a_second_name_of_the_same_file_does_not_load_it_again(run):
    async def scenario(world):
        async with world.use(world.wanted("tiny")), world.use(world.wanted("copy")):
            assert len(world.broker.loads) == 1

    run(scenario)


@pytest.mark.parametrize("change", [{"num_ctx": 128}, {"rpc_servers": ("a:1",)}, {"num_thread": 2}, {"num_batch": 64}])
def test_other_runner_options_or_workers_load_it_again(run, change):
    async def scenario(world):
        async with world.use():
            pass
        async with world.use(world.wanted(**change)):
            assert world.broker.loads == [world.wanted(), world.wanted(**change)]

    run(scenario)


def test_other_options_wait_until_the_running_requests_are_done(run):
    async def scenario(world):
        loaded = []

        async def ask():
            async with world.use(world.wanted(num_ctx=128)) as resident:
                loaded.append(resident.loaded.num_ctx)

        async with world.use():
            other = asyncio.create_task(ask())
            await settle()
            assert (len(world.broker.loads), loaded) == (1, [])
        await other
        assert (len(world.broker.loads), loaded) == (2, [128])

    run(scenario)


def test_whoever_waits_for_other_options_is_not_overtaken(run):
    async def scenario(world):
        order = []

        async def ask(label, wanted):
            async with world.use(wanted):
                order.append(label)

        async with world.use():
            waiting = [asyncio.create_task(ask("other", world.wanted(num_ctx=128)))]
            await settle()
            waiting.append(asyncio.create_task(ask("same", world.wanted())))
            await settle()
            assert order == []
        await asyncio.gather(*waiting)
        assert order == ["other", "same"]

    run(scenario)


def test_too_many_waiting_requests_are_refused(run):
    async def scenario(world):
        async with world.use():
            other = world.wanted(num_ctx=128)

            async def ask():
                async with world.use(other):
                    pass

            waiting = [asyncio.create_task(ask()) for _ in range(2)]
            await settle()
            with pytest.raises(ServerBusy, match=r"server busy, please try again\.  maximum pending requests exceeded"):
                await ask()
        await asyncio.gather(*waiting)

    run(scenario, max_queue=2)


@pytest.mark.parametrize("contexts", [1, 2, 4])
def test_as_many_as_the_model_has_contexts_run_and_the_queue_waits(run, contexts):
    async def scenario(world):
        world.broker.contexts = contexts
        async with AsyncExitStack() as stack:
            for _ in range(contexts + 2):
                await stack.enter_async_context(world.use(world.wanted(num_parallel=0)))
            with pytest.raises(ServerBusy):
                await stack.enter_async_context(world.use(world.wanted(num_parallel=0)))

    run(scenario, max_queue=2)


def test_the_broker_is_not_flooded_either(run):
    async def scenario(world):
        async with AsyncExitStack() as stack:
            for _ in range(3):  # one runs, two wait
                await stack.enter_async_context(world.use())
            with pytest.raises(ServerBusy):
                await stack.enter_async_context(world.use())

    run(scenario, max_queue=2)


def test_the_timer_runs_when_nobody_uses_the_model_and_unloads_it(run):
    async def scenario(world):
        async with world.use():
            assert world.timers.running == []
            world.now = 2000.0
        [timer] = world.timers.running
        assert (timer.delay, world.resident.expires_at) == (300.0, 2300.0)
        world.timers.fire()
        await until(lambda: world.is_idle)
        assert (world.broker.n_unloads, world.scheduler.residents) == (1, [])

    run(scenario)


def test_a_request_stops_the_timer_and_its_keep_alive_stays(run):
    async def scenario(world):
        async with world.use(keep_alive_s=60.0):
            pass
        async with world.use():
            assert world.timers.running == []
        assert [timer.delay for timer in world.timers.running] == [60.0]

    run(scenario)


def test_forever_has_no_timer(run):
    async def scenario(world):
        async with world.use(keep_alive_s=math.inf):
            pass
        assert world.timers.running == []
        assert world.resident.expires_at > world.now + 100 * 365 * 86400

    run(scenario)


def test_a_timer_that_fires_as_a_request_comes_does_nothing(run):
    async def scenario(world):
        async with world.use():
            pass
        [timer] = world.timers.running
        async with world.use():
            timer.function()
            await settle()
            assert world.broker.n_unloads == 0

    run(scenario)


def test_expire_unloads_at_once_or_after_the_last_user(run):
    async def scenario(world):
        async with world.use():
            await world.scheduler.expire(world.model.gguf_path)
            assert world.broker.n_unloads == 0
            assert world.resident.expires_at == world.now
        assert [timer.delay for timer in world.timers.running] == [0.0]
        world.timers.fire()
        await until(lambda: world.is_idle)
        async with world.use():
            pass
        await world.scheduler.expire(world.model.gguf_path)
        assert world.broker.n_unloads == 2

    run(scenario)


def test_expire_of_what_is_not_loaded_changes_nothing(run, tmp_path):
    async def scenario(world):
        await world.scheduler.expire(tmp_path)
        async with world.use():
            pass
        await world.scheduler.expire(tmp_path)
        assert world.broker.n_unloads == 0

    run(scenario)


def test_a_load_is_dropped_when_the_last_client_that_waits_for_it_has_left(run):
    async def scenario(world):
        world.broker.holds_loads = True

        async def ask():
            async with world.use():
                raise AssertionError("it left")

        asking = asyncio.create_task(ask())
        await until(lambda: world.broker.loads)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert world.is_idle
        world.broker.finish_load()
        assert world.broker.models == []
        world.broker.holds_loads = False
        async with world.use():
            assert len(world.broker.loads) == 2

    run(scenario)


def test_a_client_that_leaves_as_its_load_ends_leaves_no_model_that_nobody_ends(run):
    async def scenario(world):
        world.broker.holds_loads = True

        async def ask():
            async with world.use():
                raise AssertionError("it left")

        asking = asyncio.create_task(ask())
        await until(lambda: world.broker.loads)
        world.broker.finish_load()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await settle()
        assert len(world.broker.models) == len(world.scheduler.residents) == len(world.timers.running) == 1

    run(scenario)


def test_a_client_that_leaves_does_not_stop_a_load_that_another_waits_for(run):
    async def scenario(world):
        world.broker.holds_loads = True

        async def ask():
            async with world.use():
                pass

        asking = [asyncio.create_task(ask()) for _ in range(3)]
        await until(lambda: world.broker.loads)
        asking[0].cancel()
        asking[1].cancel()
        await settle()
        world.broker.finish_load()
        await asking[2]
        with pytest.raises(asyncio.CancelledError):
            await asking[0]
        assert len(world.broker.loads) == 1

    run(scenario)


def test_a_load_is_dropped_when_those_that_wait_leave_one_after_the_other(run):
    async def scenario(world):
        world.broker.holds_loads = True

        async def ask():
            async with world.use():
                pass

        asking = [asyncio.create_task(ask()) for _ in range(2)]
        await until(lambda: world.broker.loads)
        for each in asking:
            each.cancel()
            await settle()
        await asyncio.wait(asking)
        assert world.is_idle

    run(scenario)


def test_a_failed_load_leaves_nothing_and_the_next_may_try(run):
    async def scenario(world):
        world.broker.load_error = OutOfDeviceMemory("full")
        with pytest.raises(OutOfDeviceMemory):
            async with world.use():
                pass
        assert world.is_idle
        world.broker.load_error = None
        async with world.use() as resident:
            assert world.broker.models == [resident.loaded]

    run(scenario)


def test_a_load_that_fails_before_it_begins_leaves_the_old_model_with_its_timer(run):
    async def scenario(world):
        async with world.use() as first:
            pass
        world.broker.load_error = Unreachable("nobody listens")
        with pytest.raises(Unreachable):
            async with world.use(world.wanted(num_ctx=32)):
                pass
        assert world.resident is first
        assert len(world.timers.running) == 1
        async with world.use() as again:
            assert again is first

    run(scenario)


def test_a_model_that_the_broker_lost_is_loaded_again(run):
    async def scenario(world):
        async with world.use():
            pass
        world.broker.models.clear()
        async with world.use():
            assert len(world.broker.loads) == 2

    run(scenario)


def test_models_of_other_files_are_loaded_beside(run):
    async def scenario(world):
        async with world.use(), world.use(world.other("second")):
            assert world.names == ["tiny", "second"]
        assert len(world.timers.running) == 2

    run(scenario)


def test_the_least_recently_used_idle_model_goes_when_memory_is_short(run):
    async def scenario(world):
        world.broker.room = 2
        for name in ("first", "second", "first", "third"):
            async with world.use(world.other(name)):
                pass
        assert world.names == ["first", "third"]
        assert len(world.timers.running) == 2

    run(scenario)


def test_a_model_in_use_is_waited_for_and_nobody_overtakes(run):
    async def scenario(world):
        world.broker.room, order = 1, []

        async def ask(name):
            async with world.use(world.other(name)):
                order.append(name)

        async with world.use(world.other("first")):
            waiting = []
            for name in ("second", "first"):
                waiting.append(asyncio.create_task(ask(name)))
                await settle()
            assert (world.names, order) == (["first"], [])
        await asyncio.gather(*waiting)
        assert order == ["second", "first"]

    run(scenario)


def test_who_gives_up_waiting_frees_the_model_it_waited_for(run):
    async def scenario(world):
        world.broker.room = 1

        async def load(name):
            async with world.use(world.other(name)):
                pass

        async with world.use():
            asking = asyncio.create_task(load("second"))
            await settle()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            world.broker.room, world.broker.holds_loads = 2, True
            asking = asyncio.create_task(load("third"))
            await until(lambda: len(world.broker.loads) == 2)
            async with world.use() as again:
                assert again.users == 2
            world.broker.finish_load()
            await asking

    run(scenario)


def test_memory_that_nobody_can_give_is_an_error(run):
    async def scenario(world):
        world.broker.room = 0
        with pytest.raises(MemoryInUse):
            async with world.use():
                pass
        assert (world.broker.asked, world.is_idle) == (1, True)

    run(scenario)


def test_an_idle_model_goes_before_one_that_is_in_use(run):
    """However long ago the latter was asked for."""

    async def scenario(world):
        async with world.use(world.other("busy")):
            for name in ("idle", "third"):
                async with world.use(world.other(name)):
                    pass
            assert world.names == ["busy", "third"]

    run(scenario, max_loaded=2)


def test_without_a_queue_one_request_may_load(run):
    async def scenario(world):
        async with world.use():
            assert world.names == ["tiny"]

    run(scenario, max_queue=0)


def test_of_a_request_that_was_served_nothing_is_kept(run):
    async def scenario(world):
        for num_ctx in (32, 64, 128):
            async with world.use(world.wanted(num_ctx=num_ctx)):
                pass
        assert not world.scheduler._waiting

    run(scenario)


def test_no_more_models_are_loaded_than_allowed(run):
    async def scenario(world):
        for name in ("first", "second", "third"):
            async with world.use(world.other(name)):
                pass
        assert (world.names, world.broker.asked) == (["second", "third"], 3)

    run(scenario, max_loaded=2)


def test_two_loads_that_race_for_the_last_memory_come_one_after_the_other(run):
    async def scenario(world):
        world.broker.room, seen = 1, []

        async def ask(name):
            async with world.use(world.other(name)):
                seen.append(world.names)
                await settle()

        await asyncio.gather(ask("first"), ask("second"))
        assert seen == [["first"], ["second"]]

    run(scenario)


def test_a_loaded_model_answers_while_another_is_being_loaded(run):
    async def scenario(world):
        async with world.use():
            pass
        world.broker.holds_loads = True

        async def ask():
            async with world.use(world.other("second")):
                pass

        loading = asyncio.create_task(ask())
        await until(lambda: len(world.broker.loads) == 2)
        async with world.use() as resident:
            assert resident.users == 1
        await world.scheduler.expire(world.model.gguf_path)  # nor does unloading wait for the load
        assert world.names == []
        world.broker.finish_load()
        await loading

    run(scenario)


def test_of_10_000_requests_for_a_model_that_loads_all_but_the_queue_are_refused_at_once(run):
    async def scenario(world):
        world.broker.holds_loads = True

        async def ask():
            async with world.use():
                return True

        asking = [asyncio.create_task(ask()) for _ in range(10_000)]
        await until(lambda: world.broker.loads)
        refused = [task for task in asking if task.done()]
        assert {str(task.exception()) for task in refused} == {
            "server busy, please try again.  maximum pending requests exceeded"
        }
        assert len(refused) == 10_000 - 512
        world.broker.finish_load()
        assert sum([await task for task in asking if task not in set(refused)]) == 512

    run(scenario)
