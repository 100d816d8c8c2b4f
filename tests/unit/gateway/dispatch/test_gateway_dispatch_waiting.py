"""Waiting for room on nodes that have slots: nothing without load, order and refusals with it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from dispatch_rig import Rig, ask
from gateway_fakes import add_ready, announcement

from gateway.dispatch.caller import Client
from gateway.state import Fleet
from gateway.upstream import AttemptStream
from tidegate.routing.admission import AdmissionLimits
from tidegate.routing.domain import (
    AttemptKey,
    Binding,
    Budget,
    BudgetOutcome,
    Code,
    Finish,
    Finished,
    FinishReason,
    FirstToken,
    GenerateRequest,
    NodeLoad,
    OnMiss,
    SequenceOutput,
    ServeError,
    Tier,
    Usage,
    Work,
)

pytestmark = pytest.mark.looptime

# What gateway_fakes' nodes announce: four slots at 30 tokens/s each, 1,000 prompt tokens/s.
SLOTS, TOKENS, TOKEN_S = 4, 30, 1 / 30
SERVICE_S = TOKENS * TOKEN_S
CAPACITY = SLOTS / SERVICE_S


@dataclass
class SlotNodes:
    """Implements Upstream: each node runs four at once, first come first served, and says so to the fleet."""

    fleet: Fleet
    queues: dict[str, deque[AttemptStream]] = field(default_factory=dict)
    running: Counter[str] = field(default_factory=Counter)
    works: list[tuple[str, Work]] = field(default_factory=list)
    deepest: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def open(self, node_id: str, work: Work) -> AttemptStream:
        self.works.append((node_id, work))
        self.fleet.sent(node_id, work)
        stream = AttemptStream(
            work.key,
            work.credits,
            max_tokens=work.max_tokens,
            grant=lambda key, n: None,
            cancel=lambda key: self.fleet.ended(node_id, key),
        )
        waiting = self.queues.setdefault(node_id, deque())
        waiting.append(stream)
        self.deepest = max(self.deepest, len(waiting))
        self.start(node_id)
        return stream

    def start(self, node_id: str) -> None:
        while self.queues[node_id] and self.running[node_id] < SLOTS:
            self.running[node_id] += 1
            self.tasks.append(asyncio.create_task(self.run(node_id, self.queues[node_id].popleft())))

    async def run(self, node_id: str, stream: AttemptStream) -> None:
        await asyncio.sleep(0.01)
        self.put(stream.key, stream, 0)
        await asyncio.sleep(SERVICE_S)
        self.fleet.ended(node_id, stream.key)
        stream.put(
            SequenceOutput(stream.key, 1, TOKENS - 1, finish=Finish(FinishReason.LENGTH, Usage(9, 30)))
        )
        self.running[node_id] -= 1
        self.start(node_id)

    @staticmethod
    def put(key: AttemptKey, stream: AttemptStream, index: int) -> None:
        stamps = FirstToken(0.0, 10.0, 0, 1, 9)
        stream.put(SequenceOutput(key, index, 1, (index,), "t ", first_token=stamps))


def rig_with(
    limits: AdmissionLimits = AdmissionLimits(),  # noqa: B008
    *,
    log_share: float = 0.0,
    **nodes: Binding,
) -> tuple[Rig, SlotNodes]:
    rig = Rig(in_flight=5000, limits=limits, log_share=log_share)
    slots = SlotNodes(rig.fleet)
    rig.dispatcher._upstream = slots
    for node_id, binding in nodes.items():
        add_ready(rig.fleet, node_id, binding)
    assert announcement("n").slots == SLOTS
    return rig, slots


EDGE = Binding(Tier.EDGE, cost_per_mtoken=1.0)
CLOUD = Binding(Tier.CLOUD, cost_per_mtoken=9.0)
STRICT = {"budget": Budget(ttft_ms=2000.0, target_share=0.5), "on_miss": OnMiss.REJECT}


@dataclass
class Tally:
    """How requests ended, with the moments on the loop's clock."""

    met: list[float] = field(default_factory=list)
    missed: list[float] = field(default_factory=list)
    refused: list[tuple[float, ServeError]] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)

    async def one(self, rig: Rig, request: GenerateRequest, tenant: str = "default") -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async for event in rig.dispatcher.generate(request, Client(tenant)):
                if isinstance(event, Finished):
                    kept = event.budget is not BudgetOutcome.MISSED
                    (self.met if kept else self.missed).append(loop.time())
                    self.tokens[tenant] += TOKENS
        except ServeError as error:
            self.refused.append((loop.time() - began_s, error))


async def flood(
    rig: Rig,
    tally: Tally,
    per_s: float,
    seconds: float,
    label: str,
    tenants: Iterable[str] = ("default",),
    **asked: object,
) -> list[asyncio.Task[None]]:
    names = list(tenants)
    tasks = []
    for n in range(int(per_s * seconds)):
        request = ask(f"{label}-{n}", max_tokens=TOKENS, **asked)
        tasks.append(asyncio.create_task(tally.one(rig, request, names[n % len(names)])))
        await asyncio.sleep(1 / per_s)
    return tasks


async def test_with_free_slots_nobody_waits() -> None:
    rig, slots = rig_with(n1=EDGE)
    tally = Tally()
    for task in await flood(rig, tally, 0.9 * CAPACITY, 10.0, "calm"):
        await task
    assert not tally.refused
    assert rig.count("tidegate_wait_seconds_count") == 0.0
    assert slots.deepest == 1


@pytest.mark.parametrize("on_miss", [OnMiss.REJECT, OnMiss.BEST_EFFORT])
async def test_ten_times_too_much_keeps_the_goodput_and_recovers_at_once(on_miss: OnMiss) -> None:
    rig, slots = rig_with(n1=EDGE)
    over, after = Tally(), Tally()
    asked = STRICT | {"on_miss": on_miss}
    tasks = await flood(rig, over, 10 * CAPACITY, 15.0, "over", **asked)
    # From full speed to the end of the flood.
    good = [at for at in over.met if 2.0 < at <= 15.0]
    assert len(good) >= 0.9 * CAPACITY * 13.0
    assert slots.deepest == 1  # nothing waits at the node, where nobody could order or refuse it any more
    await asyncio.sleep(4.0)
    late = await flood(rig, after, 0.7 * CAPACITY, 5.0, "after", **asked)
    await asyncio.gather(*tasks, *late)
    assert len(after.met) == len(late)
    if on_miss is OnMiss.REJECT:
        assert {e.code for _, e in over.refused} == {Code.RESOURCE_EXHAUSTED}
        assert all(e.retry_after_ms and e.retry_after_ms >= 50.0 for _, e in over.refused)
        at_once = sum(waited_s < 0.01 for waited_s, _ in over.refused)
        assert at_once >= 0.9 * len(over.refused)  # before any prefill, and before any wait


async def test_without_the_queue_the_same_flood_kills_the_goodput() -> None:
    """The control: everything waits at the node, in order of arrival."""
    rig, _ = rig_with(AdmissionLimits(waiting=0), n1=EDGE)
    tally = Tally()
    tasks = await flood(rig, tally, 10 * CAPACITY, 15.0, "over", **STRICT | {"on_miss": OnMiss.BEST_EFFORT})
    good = [at for at in tally.met if 2.0 < at <= 15.0]
    assert len(good) < 0.5 * CAPACITY * 13.0
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_tenant_that_floods_takes_no_more_than_its_share() -> None:
    rig, _ = rig_with(n1=EDGE)
    tally = Tally()
    noisy = asyncio.create_task(flood(rig, tally, 8 * CAPACITY, 12.0, "noisy", ["noisy"]))
    await asyncio.sleep(2.0)
    quiet = await flood(rig, tally, 0.4 * CAPACITY, 10.0, "quiet", ["quiet"])
    done = tally.tokens["quiet"]
    tasks = [*await noisy, *quiet]
    assert done >= 0.8 * 0.4 * CAPACITY * 10.0 * TOKENS
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_priority_goes_first_and_the_low_one_is_served_all_the_same() -> None:
    rig, slots = rig_with(AdmissionLimits(max_wait_s=60.0, waiting=50), n1=EDGE)
    tally, low = Tally(), Tally()
    blockers = await flood(rig, tally, 1000.0, 0.03, "block", priority=5)
    task = asyncio.create_task(low.one(rig, ask("low", max_tokens=TOKENS, priority=-5)))
    more = await flood(rig, tally, 1.1 * CAPACITY, 20.0, "high", priority=5)
    await asyncio.gather(task, *blockers, *more)
    order = [work.key.request_id for _, work in slots.works]
    place = next(n for n, request_id in enumerate(order) if request_id.startswith("low"))
    assert low.met
    assert 20 <= place <= 55  # behind what was there before it, and long before the flood's end


async def test_the_costlier_node_is_used_where_waiting_would_miss() -> None:
    rig, slots = rig_with(n1=EDGE, n2=CLOUD)
    tally = Tally()
    burst = [ask(f"b-{n}", max_tokens=TOKENS, budget=Budget(ttft_ms=500.0)) for n in range(8)]
    await asyncio.gather(*(tally.one(rig, request) for request in burst))
    assert Counter(node for node, _ in slots.works) == {"n1": 4, "n2": 4}
    assert len(tally.met) == 8

    patient = [ask(f"p-{n}", max_tokens=TOKENS) for n in range(8)]
    await asyncio.gather(*(tally.one(rig, request) for request in patient))
    assert Counter(node for node, work in slots.works[8:]) == {
        "n1": 8
    }  # it costs less, and nobody is in a hurry


async def test_who_leaves_while_waiting_frees_its_place() -> None:
    rig, slots = rig_with(n1=EDGE)
    tally = Tally()
    tasks = [asyncio.create_task(tally.one(rig, ask(f"r-{n}", max_tokens=TOKENS))) for n in range(7)]
    await asyncio.sleep(0.1)
    assert len(rig.line) == 3
    tasks[4].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(rig.line) == 0
    assert [w.key.request_id.split(".")[0] for _, w in slots.works[4:]] == ["r-5", "r-6"]


async def test_nobody_is_sent_away_for_how_long_running_answers_might_get() -> None:
    """Clients allow thousands of tokens and get a hundred."""
    rig, _ = rig_with(n1=EDGE)
    rig.fleet.heartbeat("n1", NodeLoad(running=4, pending_decode_tokens=10_000_000))
    tally = Tally()
    waiting = asyncio.create_task(tally.one(rig, ask("patient", max_tokens=TOKENS)))
    await asyncio.sleep(3.0)
    assert not waiting.done()
    rig.fleet.heartbeat("n1", NodeLoad(running=0))
    await waiting
    assert not tally.refused


async def test_a_node_with_fewer_slots_than_announced_gets_no_more_and_nothing_is_lost() -> None:
    rig, slots = rig_with(n1=EDGE)
    rig.fleet.heartbeat("n1", NodeLoad(running=0, usable_slots=1))
    tally = Tally()
    tasks = [asyncio.create_task(tally.one(rig, ask(f"r-{n}", max_tokens=TOKENS))) for n in range(6)]
    await asyncio.sleep(0.1)
    assert (len(slots.works), len(rig.line)) == (1, 5)
    # More slots again: what waited goes at once.
    rig.fleet.heartbeat("n1", NodeLoad(running=1, last_work_seq=1, usable_slots=SLOTS))
    await asyncio.sleep(0.1)
    assert (len(slots.works), len(rig.line)) == (SLOTS, 6 - SLOTS)
    await asyncio.gather(*tasks)
    assert not tally.refused
    assert len(slots.works) == 6


async def test_who_is_refused_for_the_wait_is_logged_as_a_decision(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.decisions")
    rig, _ = rig_with(log_share=1.0, n1=EDGE)
    rig.fleet.heartbeat("n1", NodeLoad(running=4, pending_decode_tokens=4000))
    tally = Tally()
    waiting = [asyncio.create_task(tally.one(rig, ask(f"r-{n}", max_tokens=TOKENS))) for n in range(4)]
    await asyncio.sleep(0.01)
    await tally.one(rig, ask("hasty", max_tokens=TOKENS, remaining_ms=200.0))
    (line,) = [vars(r) for r in caplog.records if getattr(r, "refused", None)]
    assert (line["request_id"], line["refused"]) == ("hasty", "OVERLOADED")
    assert line["wait_ms"] > 200.0
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_hard_deadline_that_cannot_be_kept_is_refused_at_once() -> None:
    rig, _ = rig_with(n1=EDGE)
    rig.fleet.heartbeat("n1", NodeLoad(running=4, pending_decode_tokens=4000))
    tally = Tally()
    first = [asyncio.create_task(tally.one(rig, ask(f"r-{n}", max_tokens=TOKENS))) for n in range(20)]
    await asyncio.sleep(0.01)
    await tally.one(rig, ask("hasty", max_tokens=TOKENS, remaining_ms=200.0))
    waited_s, error = tally.refused[-1]
    assert (waited_s, error.code, error.reason) == (0.0, Code.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert float(error.details["predicted_wait_ms"]) > 200.0
    for task in first:
        task.cancel()
    await asyncio.gather(*first, return_exceptions=True)
