"""Answers through the whole of Tidegate, token by token, with nothing failing."""

from __future__ import annotations

import asyncio

import pytest
from e2e_fleet import Asked, ask, log_lines, until

import tidegate
from tidegate_cli.stack import LocalFleet


async def test_every_token_of_many_concurrent_streams_is_the_right_one(fleet: LocalFleet) -> None:
    async with tidegate.Client(fleet.address) as client:
        asked = await asyncio.gather(
            *(ask(client, f"question {i} " + "x" * (37 * i % 1500), max_tokens=5 + i % 20) for i in range(60))
        )
    for i, each in enumerate(asked):
        assert each.completion is not None, each.error
        each.check(5 + i % 20)
    # Positive control: another input has other tokens, so a mixed-up answer would show.
    other = Asked("another question", chunks=asked[0].chunks, route=asked[0].route)
    with pytest.raises(AssertionError):
        other.check(5)
    assert {a.node for a in asked} >= {"edge-a", "edge-b"}


async def test_cancelled_streams_free_the_slots(fleet: LocalFleet) -> None:
    async def busy() -> bool:
        return sum(n.running for n in await client.nodes()) >= 8

    async def idle() -> bool:
        return sum(n.running + n.queued for n in await client.nodes()) == 0

    async with tidegate.Client(fleet.address) as client:
        tasks = [asyncio.create_task(ask(client, f"long {i}", max_tokens=2000)) for i in range(10)]
        await until(busy, 10.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        took_s = await until(idle, 5.0)
    # 2,000 tokens would take half a minute; heartbeats tell of the change within a second.
    assert took_s < 3.0


async def test_hard_deadline_ends_a_running_answer(fleet: LocalFleet) -> None:
    async with tidegate.Client(fleet.address, retry=tidegate.RetryPolicy(attempts=1)) as client:
        asked = await ask(client, "a long story", max_tokens=2000, deadline_s=1.0)
    assert isinstance(asked.error, tidegate.DeadlineExceeded)
    assert asked.tokens
    asked.check(2000)


async def test_sessions_come_back_to_their_warm_prefix(fleet: LocalFleet) -> None:
    first = tidegate.Message(tidegate.Role.USER, "remember this " * 200)
    async with tidegate.Client(fleet.address) as client:
        one = await client.complete([first], max_tokens=8, session_id="warm")
        # Caches are reported at most every quarter of a second.
        await asyncio.sleep(0.5)
        turns = [first, tidegate.Message(tidegate.Role.ASSISTANT, one.text)]
        turns.append(tidegate.Message(tidegate.Role.USER, "and now?"))
        two = await client.complete(turns, max_tokens=8, session_id="warm")
    assert one.route is not None
    assert two.route is not None
    assert one.usage.cached_tokens == 0
    assert two.route.node_id == one.route.node_id
    assert two.usage.cached_tokens >= 512


async def test_refused_budget_costs_nothing_and_tells_what_would_be_met(fleet: LocalFleet) -> None:
    async with tidegate.Client(fleet.address) as client:
        reject = tidegate.OnMiss.REJECT
        refused = await ask(
            client, "x" * 2000, max_tokens=4, budget=tidegate.Budget(ttft_ms=1.0), on_miss=reject
        )
        assert isinstance(refused.error, tidegate.BudgetUnmeetable)
        loose_ms = 3 * float(refused.error.details["meetable_ttft_ms"])
        answered = await ask(
            client, "x" * 2000, max_tokens=4, budget=tidegate.Budget(ttft_ms=loose_ms), on_miss=reject
        )
    assert answered.completion is not None
    assert not refused.chunks
    rows = [line for line in log_lines(fleet, "gateway") if line.get("reason") == refused.error.reason]
    assert rows
    assert rows[-1]["node"] == ""


async def test_both_front_doors_and_explain_agree_on_the_fleet(fleet: LocalFleet) -> None:
    async with tidegate.Client(fleet.address) as client:
        nodes, models = await asyncio.gather(client.nodes(), client.models())
        decision = await client.explain("where to?", placement="cloud")
    assert sorted((n.name, n.tier.value) for n in nodes) == [
        ("cloud-1", "cloud"),
        ("edge-a", "edge"),
        ("edge-b", "edge"),
    ]
    assert {v.digest for m in models for v in m.variants} == {"oracle-Q4_0", "oracle-Q8_0"}
    assert decision.route is not None
    assert decision.route.node_name == "cloud-1"
    # The injected distance of 40 ms is seen by the gateway itself.
    cloud = next(n for n in nodes if n.name == "cloud-1")
    assert cloud.rtt_ms is not None
    assert 35 <= cloud.rtt_ms <= 200
