"""Processes killed and frozen under load: what clients are promised, checked to the token."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from e2e_fleet import ONCE, Asked, ask, log_lines, until

import tidegate
from tidegate_cli.stack import LocalFleet

LOST = "NODE_LOST"


@contextmanager
def frozen(fleet: LocalFleet, name: str) -> Iterator[None]:
    """SIGSTOP for the block."""
    pid = fleet.children[name].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# The more of it in a prompt, the longer computing takes.
LONGER = " and so on" * 22


async def under_load(
    client: tidegate.Client, count: int, max_tokens: int, fault: Callable[[], None], victim: str = ""
) -> list[Asked]:
    """Asks `count` at once, each prompt longer than the one before, so that on each node some answer while
    others have no token yet. The fault comes with the victim's first token, or with the first anywhere."""
    started = asyncio.Event()

    def first_token(asked: Asked) -> None:
        if not victim or asked.node == victim:
            started.set()

    tasks = [
        asyncio.create_task(
            ask(client, f"load {i}{i * LONGER}", first_token, placement="edge", max_tokens=max_tokens)
        )
        for i in range(count)
    ]
    await asyncio.wait_for(started.wait(), 20.0)
    fault()
    return await asyncio.gather(*tasks)


async def test_edge_killed_under_load(fleet: LocalFleet) -> None:
    async with tidegate.Client(fleet.address, retry=ONCE) as client:
        asked = await under_load(client, 20, 40, fleet.children["edge-a"].kill, victim="edge-a")
        for each in asked:
            if each.tokens:
                each.check(40)
        broken = [a for a in asked if a.error is not None]
        moved = [a for a in asked if a.completion is not None and a.completion.attempts > 1]
        # Only those that had a token on the killed node fail, and they say why.
        assert broken
        assert moved
        for each in broken:
            assert isinstance(each.error, tidegate.Unavailable)
            assert (each.error.reason, each.node) == (LOST, "edge-a")
            assert each.tokens
        assert {a.node for a in moved} == {"edge-b"}
        # What a caller does then works.
        again = await ask(client, broken[0].prompt, placement="edge", max_tokens=5)
        assert again.completion is not None
        again.check(5)


async def test_dead_edge_is_out_of_rotation_at_once_and_back_when_it_is_back(fleet: LocalFleet) -> None:
    fleet.children["edge-a"].kill()
    killed_s = time.monotonic()
    await fleet.wait_ready_nodes({"edge-b", "cloud-1"}, 5.0)
    # Its connections break at once; the rest is this test's own way of looking.
    assert time.monotonic() - killed_s < 2.0
    async with tidegate.Client(fleet.address, retry=ONCE) as client:
        asked = await asyncio.gather(
            *(ask(client, f"q {i}", placement="edge", max_tokens=3) for i in range(6))
        )
        assert {a.node for a in asked if a.completion} == {"edge-b"}
        await fleet.start_edge("edge-a")
        assert await fleet.wait_whole() < 5.0
        back = await asyncio.gather(
            *(ask(client, f"r {i}", placement="edge", max_tokens=3) for i in range(12))
        )
    assert {a.node for a in back if a.completion} == {"edge-a", "edge-b"}


async def test_frozen_edge_is_left_and_its_waiting_work_is_done_elsewhere(fleet: LocalFleet) -> None:
    async with tidegate.Client(fleet.address, retry=ONCE) as client:
        with frozen(fleet, "edge-a"):
            frozen_s = time.monotonic()
            asked = await asyncio.gather(
                *(ask(client, f"ice {i}", placement="edge", max_tokens=4) for i in range(6))
            )
            await fleet.wait_ready_nodes({"edge-b", "cloud-1"}, 10.0)
            silent_s = time.monotonic() - frozen_s
            late = await asyncio.gather(
                *(ask(client, f"l {i}", placement="edge", max_tokens=4) for i in range(6))
            )
    assert [a.error for a in (*asked, *late) if a.error] == []
    for each in (*asked, *late):
        each.check(4)
        assert each.node == "edge-b"
    assert silent_s < 8.0
    # Work that stood still there earns it a pause of ten seconds.
    assert await fleet.wait_whole(30.0) < 15.0


async def test_gateway_killed_and_back(fleet: LocalFleet) -> None:
    retry = tidegate.RetryPolicy(attempts=60, max_ms=500.0)
    async with tidegate.Client(fleet.address, retry=retry) as client:
        await client.nodes()
        fleet.children["gateway"].kill()
        # Asked while nobody is there: no token has come, so the client may try again.
        waiting = asyncio.create_task(ask(client, "are you there?", max_tokens=4, deadline_s=30.0))
        await fleet.start_gateway("tidegate")
        assert await fleet.wait_whole() <= 5.0
        asked = await waiting
    # The first nodes may come back a moment after the client: refused then, never wrong.
    assert asked.completion is not None, asked.error
    asked.check(4)


async def test_streams_cut_by_a_killed_gateway_end_with_an_error(fleet: LocalFleet) -> None:
    async with tidegate.Client(fleet.address) as client:
        asked = await under_load(client, 4, 400, fleet.children["gateway"].kill)
    for each in asked:
        assert each.completion is None
        assert isinstance(each.error, tidegate.Unavailable | tidegate.DeadlineExceeded)
        if each.tokens:
            each.check(400)


async def test_store_killed_and_frozen_under_load_fails_no_request(fleet: LocalFleet) -> None:
    async with tidegate.Client(fleet.address, retry=ONCE) as client:

        async def steady(seconds: float) -> list[Asked]:
            tasks = []
            for i in range(int(seconds * 10)):
                tasks.append(
                    asyncio.create_task(ask(client, f"steady {i}", session_id=f"s{i % 3}", max_tokens=4))
                )
                await asyncio.sleep(0.1)
            return await asyncio.gather(*tasks)

        with frozen(fleet, "redis"):
            while_frozen = await steady(2.0)
        fleet.children["redis"].kill()
        while_dead = await steady(1.5)
        await fleet.start_redis()
        afterwards = await steady(1.5)
    asked = [*while_frozen, *while_dead, *afterwards]
    assert len(asked) == 50
    assert [a.error for a in asked if a.error] == []
    for each in asked:
        each.check(4)
    # Static stability: a frozen store is not waited for.
    slowest = max(a.completion.timings.ttft_ms for a in while_frozen if a.completion)
    usual = max(a.completion.timings.ttft_ms for a in afterwards if a.completion)
    assert slowest < 3 * usual + 150


async def test_restricted_data_stays_home_whatever_is_killed(fleet: LocalFleet) -> None:
    async with tidegate.Client(fleet.address, retry=ONCE) as client:

        async def restricted(count: int) -> list[Asked]:
            return await asyncio.gather(
                *(ask(client, f"secret {i}", data_class="restricted", max_tokens=12) for i in range(count))
            )

        before = asyncio.create_task(restricted(10))
        await asyncio.sleep(0.15)
        fleet.children["edge-a"].kill()
        asked = await before
        fleet.children["edge-b"].kill()
        await fleet.wait_ready_nodes({"cloud-1"}, 3.0)
        refused = await restricted(5)
        free = await ask(client, "not a secret", max_tokens=4)
    assert any(a.completion for a in asked)
    assert {a.node for a in asked if a.tokens} <= {"edge-a", "edge-b"}
    assert all(a.error is not None and a.error.reason == "DATA_CLASS" and not a.tokens for a in refused)
    # Positive control: the cloud node was there, and other data goes to it.
    assert free.node == "cloud-1"
    assert free.completion is not None
    audit = [line for line in log_lines(fleet, "gateway") if line.get("data_class") == "restricted"]
    decisions = [line for line in audit if "decision" in line]
    assert len(decisions) >= 15
    assert {line["tier"] for line in decisions} <= {"edge", ""}
    assert sum(line["decision"] == "refused" for line in decisions) >= 5


async def test_gateway_asked_to_stop_finishes_what_runs_and_refuses_what_is_new(fleet: LocalFleet) -> None:
    seen: set[str] = set()
    all_run = asyncio.Event()

    def first_token(asked: Asked) -> None:
        seen.add(asked.prompt)
        if len(seen) == 6:
            all_run.set()

    async with tidegate.Client(fleet.address, retry=ONCE) as client:
        tasks = [
            asyncio.create_task(ask(client, f"drain {i}", first_token, max_tokens=150)) for i in range(6)
        ]
        await asyncio.wait_for(all_run.wait(), 10.0)
        fleet.children["gateway"].terminate()
        await asyncio.sleep(0.2)
        late = await ask(client, "too late", max_tokens=4)
        assert not all(task.done() for task in tasks)
        asked = await asyncio.gather(*tasks)
    assert [a.error for a in asked if a.error] == []
    for each in asked:
        each.check(150)
    assert isinstance(late.error, tidegate.Unavailable)
    assert not late.tokens

    async def ended() -> bool:
        return not fleet.children["gateway"].alive

    await until(ended, 5.0)
