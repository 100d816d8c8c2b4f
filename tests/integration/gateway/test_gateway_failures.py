"""Nodes that crash, refuse, hang or vanish: another node before the first token, clear errors after it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import QUICK, SLOW, Rig, expected_text, question, start_node, text_of, until

from tidegate.routing.domain import (
    Accepted,
    AttemptKey,
    Chunk,
    Code,
    Finished,
    GenerateEvent,
    Health,
    InputKind,
    Restarted,
    Sampling,
    ServeError,
    Work,
)

# The first attempt goes to the cheap node.
COSTS = {"cheap": 0.0, "spare": 5.0}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The operator's table: one join token for each cost."""
    table: list[dict[str, Any]] = []
    for name, cost in COSTS.items():
        (folder / name).write_text(f"join-{name}\n")
        table.append({"tier": "edge", "join_token": {"file": folder / name}, "cost_per_mtoken": cost})
    return table


@pytest.fixture
def limits() -> dict[str, Any]:
    """Short, so that a hang shows soon."""
    return {"first_token_stall_s": 0.5, "token_stall_s": 0.5}


@pytest.fixture
async def pair(tmp_path: Path, limits: dict[str, Any]) -> AsyncIterator[Rig]:
    """A cheap node that every first attempt goes to, and a spare one."""
    async with Rig(nodes=rows(tmp_path), limits=limits) as rig:
        await rig.add_node("cheap", SLOW, join_token="join-cheap")
        await rig.add_node("spare", join_token="join-spare")
        yield rig


async def read(rig: Rig, call: Any, seen: list[GenerateEvent]) -> None:
    async for event in rig.events(call):
        seen.append(event)


async def begun(
    rig: Rig, request_id: str, tokens: int, **changes: Any
) -> tuple[asyncio.Task[None], list[GenerateEvent]]:
    """A request that has been sent (tokens 0) or has had that many tokens."""
    seen: list[GenerateEvent] = []
    task = asyncio.create_task(read(rig, rig.call(question(request_id, max_tokens=40, **changes)), seen))
    node = rig.nodes[0]
    await until(
        lambda: sum(isinstance(e, Chunk) for e in seen) >= tokens and not node.idle, what="the request"
    )
    return task, seen


async def test_a_crash_before_the_first_token_is_answered_elsewhere(pair: Rig) -> None:
    pair.nodes[0].engine.hang()
    task, seen = await begun(pair, "r1", 0)
    pair.nodes[0].engine.crash()
    await task
    assert text_of(seen) == expected_text(question("r1", max_tokens=40))
    assert isinstance(seen[0], Accepted)
    assert seen[0].route.node_id == "spare"
    assert isinstance(seen[-1], Finished)
    assert seen[-1].attempts == 2


async def test_an_early_accept_says_that_it_starts_over(pair: Rig) -> None:
    pair.nodes[0].engine.hang()
    task, seen = await begun(pair, "r1", 0, early_accept=True)
    await until(lambda: seen, what="the early accept")
    assert [type(e) for e in seen] == [Accepted]
    pair.nodes[0].engine.crash()
    await task
    assert isinstance(seen[1], Restarted)
    assert (seen[1].cause, seen[1].route.node_id, seen[1].attempt_no) == ("ENGINE_CRASHED", "spare", 2)
    assert text_of(seen) == expected_text(question("r1", max_tokens=40))


@pytest.mark.parametrize(
    ("what", "cause"), [("crash", "ENGINE_CRASHED"), ("unlink", "NODE_LOST"), ("hang", "STALLED")]
)
async def test_after_the_first_token_the_error_names_the_cause(pair: Rig, what: str, cause: str) -> None:
    task, seen = await begun(pair, "r1", 2)
    node = pair.nodes[0]
    if what == "unlink":
        await node.unlink()
    else:
        getattr(node.engine, what)()
    with pytest.raises(ServeError) as caught:
        await task
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, cause)
    assert caught.value.details["node"] == "name-cheap"
    assert caught.value.retry_after_ms is not None
    got = text_of(seen)
    assert expected_text(question("r1", max_tokens=40)).startswith(got)
    assert int(caught.value.details["tokens"]) == sum(e.count for e in seen if isinstance(e, Chunk))
    if what == "hang":
        assert pair.health("cheap") is Health.STALLED
        node.engine.resume()
    await until(lambda: node.idle, what="the sequence being freed")


async def test_a_lost_link_before_the_first_token_is_answered_elsewhere(pair: Rig) -> None:
    pair.nodes[0].engine.hang()
    tasks = [await begun(pair, f"r{i}", 0) for i in range(6)]
    await pair.nodes[0].unlink()
    for task, seen in tasks:
        await task
        assert text_of(seen) == expected_text(question("r", max_tokens=40))


async def test_a_hung_engine_is_given_up_and_others_answer(pair: Rig) -> None:
    pair.nodes[0].engine.hang()
    started_s = time.monotonic()
    events = await pair.ask(question("r1"))
    assert isinstance(events[0], Accepted)
    assert events[0].route.node_id == "spare"
    assert 0.5 <= time.monotonic() - started_s < 3.0
    again = time.monotonic()
    await pair.ask(question("r2"))  # the stalled node is left alone: no second wait
    assert time.monotonic() - again < 0.5
    pair.nodes[0].engine.resume()
    await until(lambda: pair.nodes[0].idle, what="the abandoned work being cancelled")


async def test_a_full_queue_bounces_work_to_another_node(tmp_path: Path) -> None:
    tiny = replace(SLOW, slots=1, queue_limit=0)
    async with Rig(nodes=rows(tmp_path), queue={"requests": 0}) as rig:
        await rig.add_node("cheap", tiny, join_token="join-cheap")
        await rig.add_node("spare", join_token="join-spare")
        answers = await asyncio.gather(*(rig.ask(question(f"r{i}")) for i in range(12)))
        for events in answers:
            assert text_of(events) == expected_text(question("r"))
        bounced = {"tier": "edge", "outcome": "overloaded"}
        assert rig.app.metrics.registry.get_sample_value("tidegate_attempts_total", bounced)


@pytest.mark.parametrize("waiting", [0, 1])
async def test_when_everybody_is_full_the_refusal_is_fast_and_says_when(waiting: int) -> None:
    tiny = replace(SLOW, slots=1, queue_limit=0)
    async with Rig(queue={"requests": waiting}) as rig:
        await rig.add_node("n1", tiny)
        running = rig.call(question("r0", max_tokens=1000))
        await running.read()
        waits = [asyncio.create_task(rig.ask(question(f"w{n}"))) for n in range(waiting)]
        in_line = rig.app.metrics.registry.get_sample_value
        await until(lambda: in_line("tidegate_requests_waiting") == waiting, what="those that wait")
        started_s = time.monotonic()
        with pytest.raises(ServeError) as caught:
            await rig.ask(question("r1"), timeout_s=40.0)  # due last: who is due last is shed
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        assert caught.value.retry_after_ms
        assert time.monotonic() - started_s < 1.0
        running.cancel()
        for task in waits:  # who waited is served when the room is there
            assert text_of(await task) == expected_text(question("w"))


async def test_work_that_a_full_node_refuses_waits_for_it(tmp_path: Path) -> None:
    """Another replica's work is there that this one has not heard of."""
    tiny = replace(SLOW, slots=1, queue_limit=0)
    async with Rig() as rig:
        node = await rig.add_node("n1", tiny)
        others = Work(AttemptKey("other", 1), "t", tiny.model_digest, InputKind.TEXT, b"x", Sampling(), 1000)
        node.engine.submit(others)
        asked = asyncio.create_task(rig.ask(question("r1")))
        overloaded = {"tier": "edge", "outcome": "overloaded"}
        refusals = rig.app.metrics.registry.get_sample_value
        await until(lambda: refusals("tidegate_attempts_total", overloaded) == 1, what="the refusal")
        node.engine.cancel(others.key)
        assert text_of(await asked) == expected_text(question("r"))


async def test_a_draining_node_finishes_its_work_and_gets_no_more(pair: Rig) -> None:
    task, seen = await begun(pair, "r1", 1)
    pair.nodes[0].runtime.drain()
    await pair.until_health("cheap", Health.DRAINING)
    events = await pair.ask(question("r2"))
    assert isinstance(events[0], Accepted)
    assert events[0].route.node_id == "spare"
    await task
    assert text_of(seen) == expected_text(question("r1", max_tokens=40))


async def test_work_sent_while_a_node_begins_to_drain_goes_elsewhere(pair: Rig) -> None:
    pair.nodes[0].runtime._draining = True  # the gateway does not know yet
    events = await pair.ask(question("r1"))
    assert isinstance(events[0], Accepted)
    assert events[0].route.node_id == "spare"


@pytest.mark.parametrize("limits", [{}], ids=["nothing hangs here"])
async def test_churn_of_nodes_fails_no_request_that_had_no_token(pair: Rig) -> None:
    """Nodes crash and lose their links at random; a request without a token is retried, others say why."""
    rng = random.Random(7)
    await pair.add_node("third", replace(QUICK, restart_s=0.05), join_token="join-spare")

    async def client(number: int) -> str:
        request = question(f"c{number}", f"text {number}", max_tokens=rng.randrange(1, 10))
        seen: list[GenerateEvent] = []
        try:
            await read(pair, pair.call(request), seen)
        except ServeError as error:
            begun_to_answer = any(isinstance(e, Chunk) for e in seen)
            return "broken off" if begun_to_answer else error.reason
        assert text_of(seen) == expected_text(request)
        return "ok"

    clients = []
    for number in range(60):
        clients.append(asyncio.create_task(client(number)))
        if number % 10 == 5:
            pair.nodes[2].engine.crash()
        if number % 20 == 10:
            old = pair.nodes[0]
            await old.unlink()
            await old.runtime.stop(0.0)
            pair.nodes[0] = await start_node("cheap", pair.link_address, join_token="join-cheap")
        await asyncio.sleep(0.01)
    results = await asyncio.gather(*clients)
    assert results.count("ok") >= 30
    assert set(results) <= {"ok", "broken off"}
    await pair.until_health("cheap", Health.READY)
    await until(lambda: all(n.idle for n in pair.nodes), what="all nodes being idle")
    assert all(n.in_flight.requests == 0 for n in pair.app.fleet.snapshot().nodes)
