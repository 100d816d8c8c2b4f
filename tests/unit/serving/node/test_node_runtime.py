from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import replace

import pytest
from node_helpers import DIGEST, IDENTITY, INPUT, SETTINGS, Listener, Node, work

from serving.engines.base import EngineLoad
from serving.engines.oracle import OracleEngine, oracle_text
from serving.node import NodeRuntime
from tidegate.link.seam import NodeService, WorkRefused
from tidegate.routing.domain import AttemptKey, Cause, FinishReason, SequenceOutput, Work
from tidegate.routing.prefix import prefix_names

pytestmark = pytest.mark.looptime
TEXT = oracle_text(DIGEST, INPUT, 5)


def refusal(service: NodeService, listener: Listener, refused_work: Work) -> Cause:
    with pytest.raises(WorkRefused) as refused:
        service.submit(listener, refused_work)
    return refused.value.failure.cause


class ShrinkingEngine(OracleEngine):
    """Says how many sequences it runs at once at present."""

    usable_slots = 0

    def load(self) -> EngineLoad:
        return replace(super().load(), usable_slots=self.usable_slots)


async def test_it_announces_its_engine_under_its_own_name() -> None:
    async with Node() as node:
        said = node.runtime.announcement()
        assert (said.node_id, said.boot_id, said.name) == ("node-1", "boot-1", "kitchen")
        assert said.variants[0].digest == DIGEST
        assert (said.slots, said.queue_limit) == (2, 2)
        assert said.speeds == SETTINGS.speeds
        assert said.replay_digest


async def test_nothing_is_announced_before_the_start() -> None:
    runtime = NodeRuntime(OracleEngine(SETTINGS), IDENTITY)
    with pytest.raises(RuntimeError, match="not started"):
        runtime.announcement()


async def test_each_listener_hears_its_own_work_once_per_step() -> None:
    async with Node() as node:
        mine, yours = node.listener(), node.listener()
        node.runtime.submit(mine, work("a"))
        node.runtime.submit(yours, work("b"))
        await asyncio.sleep(5)
        for listener, name in ((mine, "a"), (yours, "b")):
            assert listener.text(AttemptKey(name, 1)) == TEXT
            assert {output.key.request_id for outputs in listener.deliveries for output in outputs} == {name}
            assert len(listener.deliveries) == 5


async def test_two_sequences_of_one_listener_come_in_one_call_per_step() -> None:
    async with Node() as node:
        listener = node.listener()
        node.runtime.submit(listener, work("a"))
        node.runtime.submit(listener, work("b"))
        await asyncio.sleep(5)
        assert [len(outputs) for outputs in listener.deliveries] == [2] * 5


async def test_load_is_the_engines_and_changes_are_told_to_all() -> None:
    async with Node() as node:
        mine, other = node.listener(), node.listener()
        node.runtime.submit(mine, work("a", max_tokens=3))
        node.runtime.submit(mine, work("b", max_tokens=3))
        node.runtime.submit(mine, work("c", max_tokens=3))
        assert len(other.loads) == 3
        await asyncio.sleep(0.1)
        load = node.runtime.load()
        assert (load.running, load.queued, load.ready, load.draining) == (2, 1, True, False)
        assert load.speeds == SETTINGS.speeds
        await asyncio.sleep(5)
        assert node.runtime.load().running == 0
        assert len(other.loads) == 5


async def test_work_whose_sender_is_wrong_about_the_queue_is_bounced() -> None:
    async with Node() as node:
        mine = node.listener()
        unsure = replace(work("u"), most_ahead=2)
        node.runtime.submit(
            mine, replace(work("a"), most_ahead=0)
        )  # a free slot takes it whatever was believed
        node.runtime.submit(mine, work("b"))
        node.runtime.submit(mine, work("c"))
        await asyncio.sleep(0.1)
        assert refusal(node.runtime, mine, unsure) is Cause.OVERLOADED
        node.runtime.submit(mine, replace(unsure, most_ahead=3))


async def test_a_node_with_fewer_slots_says_so_and_bounces_by_what_it_has() -> None:
    node, engine = Node(), ShrinkingEngine(SETTINGS)
    node.runtime = NodeRuntime(engine, IDENTITY)
    async with node:
        mine, unsure = node.listener(), replace(work("u"), most_ahead=0)
        assert node.runtime.load().usable_slots == node.runtime.info.slots == 2
        node.runtime.submit(mine, work("a"))
        await asyncio.sleep(0.1)
        engine.usable_slots = 1
        assert node.runtime.load().usable_slots == 1
        assert refusal(node.runtime, mine, unsure) is Cause.OVERLOADED
        engine.usable_slots = 2
        node.runtime.submit(mine, unsure)


# --- fencing ---


async def test_a_seen_attempt_and_lower_ones_are_refused() -> None:
    async with Node() as node:
        listener = node.listener()
        node.runtime.submit(listener, work("r", 3))
        for attempt_no in (1, 2, 3):
            assert refusal(node.runtime, listener, work("r", attempt_no)) is Cause.FENCED
        node.runtime.submit(listener, work("r", 4))
        await asyncio.sleep(5)
        assert listener.text(AttemptKey("r", 3)) == listener.text(AttemptKey("r", 4)) == TEXT
        assert refusal(node.runtime, listener, work("r", 4)) is Cause.FENCED


async def test_running_work_cannot_be_pushed_out_of_the_memory_of_attempts() -> None:
    engine = OracleEngine(SETTINGS)
    runtime = NodeRuntime(engine, IDENTITY, fence_entries=4)
    await runtime.start()
    listener = Listener()
    runtime.attach(listener)
    runtime.submit(listener, work("long", max_tokens=500))
    for number in range(20):
        runtime.fence(AttemptKey(f"other{number}", 3))
    # Were it forgotten, only the engine would know that it runs; a lower attempt would be taken beside it.
    assert refusal(runtime, listener, work("long")) is Cause.FENCED
    assert refusal(runtime, listener, work("long", 0)) is Cause.FENCED
    runtime.cancel(AttemptKey("long", 1))
    for number in range(20):
        runtime.fence(AttemptKey(f"more{number}", 3))
    runtime.submit(listener, work("long"))
    await runtime.stop(0.0)


async def test_work_that_was_refused_may_come_again() -> None:
    async with Node() as node:
        listener = node.listener()
        for name in "abcd":
            node.runtime.submit(listener, work(name))
        assert refusal(node.runtime, listener, work("e")) is Cause.OVERLOADED
        await asyncio.sleep(5)
        node.runtime.submit(listener, work("e"))
        await asyncio.sleep(5)
        assert listener.text(AttemptKey("e", 1)) == TEXT


async def test_a_fence_ends_running_attempts_below_and_refuses_them() -> None:
    async with Node() as node:
        listener = node.listener()
        node.runtime.submit(listener, work("r", 1, max_tokens=50))
        node.runtime.submit(listener, work("other", 1))
        await asyncio.sleep(0.35)
        node.runtime.fence(AttemptKey("r", 2))
        assert node.engine.load().running == 1
        assert listener.cause(AttemptKey("r", 1)) is Cause.FENCED
        assert refusal(node.runtime, listener, work("r", 1)) is Cause.FENCED
        node.runtime.submit(listener, work("r", 2))
        await asyncio.sleep(5)
        assert listener.text(AttemptKey("r", 2)) == listener.text(AttemptKey("other", 1)) == TEXT


async def test_a_fence_for_an_unknown_request_holds() -> None:
    async with Node() as node:
        listener = node.listener()
        node.runtime.fence(AttemptKey("r", 2))
        assert refusal(node.runtime, listener, work("r", 1)) is Cause.FENCED
        node.runtime.submit(listener, work("r", 2))


# --- cancel, detach, deadline ---


async def test_a_cancelled_attempt_frees_its_slot_and_is_silent() -> None:
    async with Node() as node:
        listener = node.listener()
        key = AttemptKey("a", 1)
        node.runtime.submit(listener, work("a", max_tokens=50))
        await asyncio.sleep(0.35)
        node.runtime.cancel(key)
        heard = len(listener.of(key))
        assert heard > 0
        assert node.engine.load().running == 0
        node.runtime.cancel(key)
        await asyncio.sleep(5)
        assert len(listener.of(key)) == heard
        assert listener.result(key) is None


async def test_the_work_of_a_listener_that_left_ends_at_once_without_grace() -> None:
    async with Node() as node:
        leaving, staying = node.listener(), node.listener()
        node.runtime.submit(leaving, work("a", max_tokens=50))
        node.runtime.submit(staying, work("b"))
        await asyncio.sleep(0.35)
        heard = len(leaving.deliveries)
        node.runtime.detach(leaving)
        assert node.engine.load().running == 1
        await asyncio.sleep(5)
        assert len(leaving.deliveries) == heard
        assert staying.text(AttemptKey("b", 1)) == TEXT


async def test_detached_work_goes_on_within_its_own_grace_only() -> None:
    async with Node() as node:
        listener = node.listener()
        node.runtime.submit(listener, work("short", max_tokens=500, detach_grace_ms=1000.0))
        node.runtime.submit(listener, work("long", max_tokens=500, detach_grace_ms=3000.0))
        await asyncio.sleep(0.35)
        node.runtime.detach(listener)
        running = []
        for _ in range(4):
            await asyncio.sleep(0.9)
            running.append(node.engine.load().running)
        assert running == [2, 1, 1, 0]


async def test_the_hard_deadline_ends_running_work() -> None:
    async with Node() as node:
        listener = node.listener()
        key = AttemptKey("a", 1)
        node.runtime.submit(listener, work("a", max_tokens=500, remaining_ms=1000.0))
        await asyncio.sleep(0.99)
        assert listener.result(key) is None
        await asyncio.sleep(0.02)
        assert listener.cause(key) is Cause.DEADLINE
        assert node.engine.load().running == 0
        last = listener.of(key)[-1]
        assert last.finish is not None
        assert last.first_index == last.finish.usage.completion_tokens == len(listener.of(key)) - 1


async def test_the_hard_deadline_holds_when_the_engine_hangs() -> None:
    async with Node() as node:
        listener = node.listener()
        node.engine.hang()
        node.runtime.submit(listener, work("a", remaining_ms=1000.0))
        await asyncio.sleep(1.01)
        assert listener.cause(AttemptKey("a", 1)) is Cause.DEADLINE


async def test_a_deadline_after_the_end_is_harmless() -> None:
    async with Node() as node:
        listener = node.listener()
        node.runtime.submit(listener, work("a", remaining_ms=1000.0))
        await asyncio.sleep(5)
        assert listener.result(AttemptKey("a", 1)) is FinishReason.LENGTH


async def test_work_without_time_left_is_refused() -> None:
    async with Node() as node:
        assert refusal(node.runtime, node.listener(), work("a", remaining_ms=0.0)) is Cause.DEADLINE


# --- refusals and failures of the engine ---


async def test_the_engines_refusals_come_through() -> None:
    async with Node() as node:
        listener = node.listener()
        assert refusal(node.runtime, listener, work("a", digest="other")) is Cause.UNKNOWN_VARIANT
        assert refusal(node.runtime, listener, work("a", data=b"\xff")) is Cause.INVALID_INPUT


async def test_a_crash_reaches_every_listener_and_readiness_is_told_both_ways() -> None:
    async with Node() as node:
        mine, yours = node.listener(), node.listener()
        node.runtime.submit(mine, work("a", max_tokens=50))
        node.runtime.submit(yours, work("b", max_tokens=50))
        await asyncio.sleep(0.35)
        node.engine.crash()
        await asyncio.sleep(0.01)
        assert mine.cause(AttemptKey("a", 1)) is Cause.ENGINE_CRASHED
        assert yours.cause(AttemptKey("b", 1)) is Cause.ENGINE_CRASHED
        assert not node.runtime.load().ready
        told = len(mine.loads)
        await asyncio.sleep(3.2)
        assert node.runtime.load().ready
        assert len(mine.loads) == told + 1


class QuietEngine(OracleEngine):
    """Readiness changes without a step telling of it."""

    ready = True

    def load(self):  # type: ignore[no-untyped-def]
        return replace(super().load(), ready=self.ready)


async def test_readiness_that_no_step_tells_of_is_noticed() -> None:
    engine = QuietEngine(SETTINGS)
    runtime = NodeRuntime(engine, IDENTITY)
    await runtime.start()
    listener = Listener()
    runtime.attach(listener)
    engine.ready = False
    await asyncio.sleep(1.1)
    assert len(listener.loads) == 1
    engine.ready = True
    await asyncio.sleep(0.2)
    assert len(listener.loads) == 2
    await runtime.stop(0.0)


class BreakingEngine(OracleEngine):
    """Its steps end with an error after the first batch."""

    async def steps(self):  # type: ignore[no-untyped-def]
        async for batch in super().steps():
            yield batch
            raise RuntimeError("a bug in the engine")


async def test_an_engine_whose_steps_break_fails_its_work(caplog: pytest.LogCaptureFixture) -> None:
    runtime = NodeRuntime(BreakingEngine(SETTINGS), IDENTITY)
    await runtime.start()
    listener = Listener()
    runtime.attach(listener)
    runtime.submit(listener, work("a"))
    with caplog.at_level(logging.CRITICAL, logger="serving"):
        await asyncio.sleep(1)
    assert listener.cause(AttemptKey("a", 1)) is Cause.INTERNAL
    assert not runtime.load().ready
    assert refusal(runtime, listener, work("b")) is Cause.INTERNAL
    await runtime.stop(0.0)


# --- broken listeners ---


class HalfTaking(OracleEngine):
    """Takes work in and then fails over it."""

    def submit(self, work: Work) -> None:
        super().submit(work)
        raise KeyError("a defect")


async def test_work_an_engine_fails_over_does_not_stay_in_it() -> None:
    runtime = NodeRuntime(HalfTaking(SETTINGS), IDENTITY)
    await runtime.start()
    listener = Listener()
    runtime.attach(listener)
    with pytest.raises(KeyError):
        runtime.submit(listener, work("a"))
    load = runtime.load()
    assert (load.running, load.queued) == (0, 0)
    await runtime.stop(0.0)


@pytest.mark.parametrize("broken", ["deliver", "load_changed", "cache_changed"])
async def test_a_broken_listener_is_dropped_and_hurts_nobody(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Node() as node:
        bad, good = node.listener(broken), node.listener()
        data = b"p" * 1024
        node.runtime.submit(bad, work("bad", data=data, max_tokens=20))
        node.runtime.submit(good, work("good", data=data, max_tokens=20))
        await asyncio.sleep(5)
        assert good.text(AttemptKey("good", 1)) == oracle_text(DIGEST, data, 20)
        assert len(bad.of(AttemptKey("bad", 1))) < 20
        assert good.caches
        assert any(broken in record.getMessage() for record in caplog.records)


# --- cache reports ---


async def test_cache_changes_come_coalesced() -> None:
    async with Node() as node:
        listener = node.listener()
        for number in range(2):
            data = str(number).encode() * 1024
            node.runtime.submit(listener, work(f"r{number}", data=data))
        await asyncio.sleep(10)
        (report,) = listener.caches
        expected = {name for n in range(2) for name in prefix_names(str(n).encode() * 1024, b"k" * 32)}
        assert set(report[1].held) == expected == set(node.runtime.cache_full().held)
        assert report[0] >= 0.25


async def test_cache_reports_keep_their_distance() -> None:
    async with Node() as node:
        listener = node.listener()
        for number in range(30):
            data = b"%03d" % number + b"x" * 600
            node.runtime.submit(listener, work(f"r{number}", data=data, max_tokens=1))
            await asyncio.sleep(0.17)
        times = [at for at, _ in listener.caches]
        assert len(times) > 5
        assert all(later - earlier >= 0.249 for earlier, later in itertools.pairwise(times))


# --- drain and stop ---


async def test_draining_finishes_what_runs_and_takes_no_more() -> None:
    async with Node() as node:
        listener = node.listener()
        node.runtime.submit(listener, work("a"))
        node.runtime.drain()
        assert node.runtime.load().draining
        assert refusal(node.runtime, listener, work("b")) is Cause.DRAINING
        told = len(listener.loads)
        node.runtime.drain()
        assert len(listener.loads) == told
        assert not await node.runtime.wait_drained(0.1)
        assert await node.runtime.wait_drained(5.0)
        assert listener.text(AttemptKey("a", 1)) == TEXT


async def test_an_idle_node_is_drained_at_once() -> None:
    async with Node() as node:
        node.runtime.drain()
        assert await node.runtime.wait_drained(0.0)


async def test_a_stop_is_bounded_and_tells_what_was_left() -> None:
    node = Node()
    await node.runtime.start()
    listener = node.listener()
    node.runtime.submit(listener, work("short", max_tokens=3))
    node.runtime.submit(listener, work("long", max_tokens=500))
    before = asyncio.get_running_loop().time()
    await node.runtime.stop(1.0)
    assert asyncio.get_running_loop().time() - before <= 1.1
    assert listener.result(AttemptKey("short", 1)) is FinishReason.LENGTH
    assert listener.cause(AttemptKey("long", 1)) is Cause.DRAINING
    assert len([task for task in asyncio.all_tasks() if task is not asyncio.current_task()]) == 0


class StuckEngine(OracleEngine):
    """Never stops by itself."""

    async def stop(self, grace_s: float) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await super().stop(0.0)


async def test_a_stop_is_bounded_when_the_engine_is_not(caplog: pytest.LogCaptureFixture) -> None:
    runtime = NodeRuntime(StuckEngine(SETTINGS), IDENTITY)
    await runtime.start()
    listener = Listener()
    runtime.attach(listener)
    runtime.submit(listener, work("a", max_tokens=500))
    before = asyncio.get_running_loop().time()
    await runtime.stop(0.5)
    assert asyncio.get_running_loop().time() - before <= 3.5
    assert listener.cause(AttemptKey("a", 1)) is Cause.DRAINING
    assert "did not stop" in caplog.text


async def test_outputs_of_forgotten_work_go_nowhere() -> None:
    async with Node() as node:
        listener = node.listener()
        node.engine.submit(work("nobody's"))
        await asyncio.sleep(5)
        outputs: list[SequenceOutput] = listener.of(AttemptKey("nobody's", 1))
        assert outputs == []
