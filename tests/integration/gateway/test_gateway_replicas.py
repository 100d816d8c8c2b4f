"""Two replicas over one real store, and the store failing under load: no request may notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from gateway_rig import QUICK, Rig, expected_text, question, text_of, until
from valkey_server import ValkeyServer

from tidegate.routing.domain import Accepted, Code, ServeError

COSTS = {"edge": 1.0, "cloud": 9.0}
EDGE = {"join_token": "join-edge"}
CLOUD = {"join_token": "join-cloud"}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The operator's table: one join token for each tier."""
    table: list[dict[str, Any]] = []
    for tier, cost in COSTS.items():
        (folder / tier).write_text(f"join-{tier}\n")
        table.append({"tier": tier, "join_token": {"file": folder / tier}, "cost_per_mtoken": cost})
    return table


@pytest.fixture
async def server() -> AsyncIterator[ValkeyServer]:
    server = ValkeyServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
async def pair(server: ValkeyServer, tmp_path: Path) -> AsyncIterator[tuple[Rig, Rig]]:
    """Two replicas of one fleet."""
    (tmp_path / "secret").write_text("0123456789abcdef0123456789abcdef")
    settings: dict[str, Any] = {
        "store": {"url": server.url, "interval_ms": 50.0},
        "fleet_secret": {"file": tmp_path / "secret"},
        "nodes": rows(tmp_path),
    }
    async with Rig(**settings, replica_id="gw-a") as one, Rig(**settings, replica_id="gw-b") as two:
        await until(lambda: one.app._sync.up and two.app._sync.up, what="the store being reached")
        yield one, two


async def test_replicas_see_each_others_nodes_without_sending_work_there(pair: tuple[Rig, Rig]) -> None:
    one, two = pair
    await one.add_node("a1", **EDGE)
    await until(lambda: "a1" in two.app.fleet.snapshot().by_id, what="the other replica's node")
    assert not two.app.fleet.snapshot().by_id["a1"].linked_here
    with pytest.raises(ServeError) as caught:
        await two.ask(question("r1"))
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "NOT_LINKED")
    await two.add_node("b1", **EDGE)
    accepted = (await two.ask(question("r2")))[0]
    assert isinstance(accepted, Accepted)
    assert accepted.route.node_id == "b1"


async def test_a_node_that_left_is_forgotten_everywhere(pair: tuple[Rig, Rig]) -> None:
    one, two = pair
    node = await one.add_node("a1", **EDGE)
    await until(lambda: "a1" in two.app.fleet.snapshot().by_id)
    await node.unlink()
    await until(lambda: "a1" not in two.app.fleet.snapshot().by_id, what="it being forgotten")


async def test_a_sessions_class_holds_on_the_other_replica(pair: tuple[Rig, Rig]) -> None:
    one, two = pair
    await one.add_node("a1", **EDGE)
    await two.add_node("b2", **CLOUD)
    await one.ask(question("r1", session_id="diary", data_class="restricted"))
    name = two.app._sessions.name("default", "diary")
    await until(lambda: two.app._sessions.data_class(name) == "restricted", what="the class arriving")
    with pytest.raises(ServeError) as caught:
        await two.ask(question("r2", session_id="diary"))
    assert caught.value.reason == "DATA_CLASS"
    await two.ask(question("r3", session_id="another"))  # the control: the cloud node itself is fine


async def test_a_replica_that_stops_hands_its_last_sessions_over(
    server: ValkeyServer, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("0123456789abcdef0123456789abcdef")
    settings: dict[str, Any] = {
        "store": {"url": server.url, "interval_ms": 60_000.0},  # no round but the first and the last
        "fleet_secret": {"file": tmp_path / "secret"},
    }
    async with Rig(**settings) as one:
        await until(lambda: one.app._sync.up)
        await one.add_node("a1")
        await one.ask(question("r1", session_id="diary", data_class="restricted"))
    async with Rig(**settings) as two:
        await until(lambda: two.app._sync.up)
        assert two.app._sessions.data_class(two.app._sessions.name("default", "diary")) == "restricted"


@pytest.mark.parametrize("fault", ["kill", "flush", "freeze"])
async def test_no_request_notices_what_happens_to_the_store(
    pair: tuple[Rig, Rig], server: ValkeyServer, fault: str
) -> None:
    one, two = pair
    await one.add_node("a1", **EDGE)
    await two.add_node("b1", **EDGE)
    stop = asyncio.Event()
    done = [0, 0]

    async def load(index: int, rig: Rig) -> None:
        while not stop.is_set():
            n = done[index]
            request = question(f"r{index}-{n}", f"q{n}", session_id=f"s{n % 7}", max_tokens=3)
            assert text_of(await rig.ask(request, timeout_s=2.0)) == expected_text(request)
            done[index] += 1

    loads = [asyncio.create_task(load(i, rig)) for i, rig in enumerate(pair)]
    await until(lambda: min(done) > 5, what="load before the fault")
    if fault == "flush":
        # The gateway's own connection gives up early, as it should: on a slow machine too early for a test.
        async with redis.asyncio.Redis.from_url(server.url, socket_timeout=20.0) as connection:
            await connection.flushall()
    elif fault == "freeze":
        server.freeze()
    else:
        server.kill()
    if fault != "flush":
        await until(
            lambda: one.app._sync.up is False and two.app._sync.up is False, what="the loss being seen"
        )
        assert one.app.metrics.registry.get_sample_value("tidegate_store_up") == 0
    during = list(done)
    await until(
        lambda: min(d - b for d, b in zip(done, during, strict=True)) > 5, what="load during the fault"
    )
    one.app._sessions.put("while-it-was-gone", None, "restricted")
    if fault == "freeze":
        server.thaw()
    elif fault == "kill":
        server.start()
    await until(lambda: one.app._sync.up and two.app._sync.up, what="the store being reached again")
    await until(lambda: "a1" in two.app.fleet.snapshot().by_id and "b1" in one.app.fleet.snapshot().by_id)
    await until(lambda: two.app._sessions.data_class("while-it-was-gone") == "restricted", what="what waited")
    stop.set()
    await asyncio.gather(*loads)


async def test_a_store_that_is_not_there_at_start_keeps_nobody_waiting(server: ValkeyServer) -> None:
    server.kill()
    async with Rig(store={"url": server.url, "interval_ms": 50.0}) as rig:
        await rig.add_node("a1", QUICK, **EDGE)
        assert text_of(await rig.ask(question("r1"))) == expected_text(question("r1"))
        server.start()
        await until(lambda: rig.app._sync.up, what="the store being found")


async def test_stopping_with_a_frozen_store_is_bounded(server: ValkeyServer) -> None:
    rig = Rig(store={"url": server.url, "interval_ms": 50.0})
    async with asyncio.timeout(5.0):
        async with rig:
            await until(lambda: rig.app._sync.up)
            server.freeze()
    server.thaw()
