"""The round with the shared store: when it is gone nothing stops and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from gateway_fakes import Clock, add_ready

from gateway.state import Fleet, NodeRecord, SessionRecord, Sessions, StoreError
from gateway.state.memory_store import MemoryStore
from gateway.state.sync import StoreSync
from tidegate.routing.domain import SessionHint

HINT = SessionHint("n1", "digest", 5)


class FaultyStore(MemoryStore):
    """A MemoryStore that fails in the method named by `broken`, with `error`."""

    broken = ""
    error: Exception = StoreError("the store is gone")

    def _maybe_fail(self, method: str) -> None:
        if self.broken in (method, "all"):
            raise self.error

    async def publish_nodes(self, replica_id: str, records: Sequence[NodeRecord], ttl_s: float) -> None:
        self._maybe_fail("publish_nodes")
        await super().publish_nodes(replica_id, records, ttl_s)

    async def read_nodes(self) -> tuple[NodeRecord, ...]:
        self._maybe_fail("read_nodes")
        return await super().read_nodes()

    async def append_sessions(self, records: Sequence[SessionRecord]) -> None:
        self._maybe_fail("append_sessions")
        await super().append_sessions(records)

    async def read_sessions(self, after: str) -> tuple[str, tuple[SessionRecord, ...]]:
        self._maybe_fail("read_sessions")
        cursor, records = await super().read_sessions(after)
        return (cursor, records) if len(records) < 3 else (str(int(after or 0) + 3), records[:3])


class Replica:
    def __init__(self, store: FaultyStore, clock: Clock, name: str) -> None:
        self.fleet = Fleet(clock)
        self.sessions = Sessions(b"k" * 32, clock, stricter=max)
        self.health: list[bool] = []
        self.sync = StoreSync(store, self.fleet, self.sessions, name, on_health=self.health.append)


@pytest.fixture
def store(clock: Clock) -> FaultyStore:
    return FaultyStore(clock)


@pytest.fixture
def a(store: FaultyStore, clock: Clock) -> Replica:
    return Replica(store, clock, "gw-a")


@pytest.fixture
def b(store: FaultyStore, clock: Clock) -> Replica:
    return Replica(store, clock, "gw-b")


async def test_replicas_learn_each_others_nodes_and_sessions(a: Replica, b: Replica) -> None:
    add_ready(a.fleet, "n1")
    a.sessions.put("s", HINT, "internal")
    await a.sync.once()
    await b.sync.once()
    assert not b.fleet.snapshot().by_id["n1"].linked_here
    assert b.sessions.hint("s") == HINT
    assert b.sessions.data_class("s") == "internal"


@pytest.mark.parametrize("broken", ["publish_nodes", "append_sessions", "read_nodes", "read_sessions", "all"])
@pytest.mark.parametrize("error", [StoreError("gone"), ValueError("a defect")])
async def test_whatever_fails_sessions_reach_the_others_later(
    a: Replica, b: Replica, store: FaultyStore, broken: str, error: Exception
) -> None:
    a.sessions.put("s", HINT, "")
    store.broken, store.error = broken, error
    await a.sync.once()
    assert a.health == [False]
    store.broken = ""
    await a.sync.once()
    await b.sync.once()
    assert a.health == [False, True]
    assert b.sessions.hint("s") == HINT


async def test_what_is_known_stays_known_without_the_store(
    a: Replica, b: Replica, store: FaultyStore
) -> None:
    add_ready(a.fleet, "n1")
    a.sessions.put("s", HINT, "")
    await a.sync.once()
    await b.sync.once()
    store.broken = "all"
    await b.sync.once()
    assert "n1" in b.fleet.snapshot().by_id
    assert b.sessions.hint("s") == HINT


async def test_a_replica_that_went_away_is_forgotten(a: Replica, b: Replica, clock: Clock) -> None:
    add_ready(a.fleet, "n1")
    await a.sync.once()
    clock.advance(6.1)
    await b.sync.once()
    assert b.fleet.snapshot().nodes == ()


async def test_a_new_replica_reads_all_pages_of_sessions_in_its_first_round(a: Replica, b: Replica) -> None:
    for n in range(20):  # the fake gives three a page
        a.sessions.put(f"s{n}", HINT, "")
    await a.sync.once()
    await b.sync.once()
    assert [n for n in range(20) if b.sessions.hint(f"s{n}") is None] == []


async def test_a_round_that_is_cancelled_loses_no_session(a: Replica, b: Replica, store: FaultyStore) -> None:
    class Hanging(FaultyStore):
        async def append_sessions(self, records: Sequence[SessionRecord]) -> None:
            await asyncio.Event().wait()

    a.sync._store = Hanging(Clock())
    a.sessions.put("s", HINT, "")
    task = asyncio.create_task(a.sync.once())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    a.sync._store = store
    await a.sync.once()
    await b.sync.once()
    assert b.sessions.hint("s") == HINT


@pytest.mark.looptime
async def test_rounds_go_on_through_an_outage(a: Replica, store: FaultyStore) -> None:
    task = asyncio.create_task(a.sync.run())
    await asyncio.sleep(1.5)
    store.broken = "all"
    await asyncio.sleep(2.0)
    store.broken = ""
    await asyncio.sleep(1.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert a.health == [True, True, False, False, True]


@pytest.mark.looptime
@pytest.mark.parametrize("method", ["publish_nodes", "read_sessions"])
async def test_a_driver_that_swallows_a_cancellation_does_not_keep_it_running(
    a: Replica, method: str
) -> None:
    class Swallowing(MemoryStore):
        """As asyncio.wait_for does in Python 3.11 when the answer comes in the same turn."""

        async def _swallow(self) -> None:
            try:
                await asyncio.sleep(1.0)
            except asyncio.CancelledError:
                swallowed.append(method)

        async def publish_nodes(self, *arguments: Any) -> None:
            if method == "publish_nodes":
                await self._swallow()

        async def read_sessions(self, after: str) -> tuple[str, tuple[SessionRecord, ...]]:
            if method == "read_sessions":
                await self._swallow()
            return after, ()

    swallowed: list[str] = []
    a.sync._store = Swallowing(Clock())
    task = asyncio.create_task(a.sync.run())
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.wait({task}, timeout=10.0)
    assert swallowed == [method]
    assert task.done()
