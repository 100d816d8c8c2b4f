"""A replica whose store nobody else sees does not tell it of nodes, but of sessions, which are kept there."""

from __future__ import annotations

import logging

import pytest
from gateway_fakes import Clock, add_ready

from gateway.state import Fleet, Sessions
from gateway.state.memory_store import MemoryStore
from gateway.state.sync import StoreSync
from tidegate.routing.domain import SessionHint


@pytest.mark.parametrize("alone", [True, False])
async def test_nodes_are_told_only_where_another_replica_may_read(clock: Clock, alone: bool) -> None:
    store, fleet = MemoryStore(clock), Fleet(clock)
    sessions = Sessions(b"k" * 32, clock, stricter=max)
    add_ready(fleet, "n1")
    sessions.put("s", SessionHint("n1", "digest", 5), "internal")
    sync = StoreSync(store, fleet, sessions, "gw-a", alone=alone)
    await sync.once()
    assert len(await store.read_nodes()) == (0 if alone else 1)
    assert len((await store.read_sessions(""))[1]) == 1
    assert sync.up


@pytest.mark.parametrize(("alone", "told"), [(True, []), (False, ["shared store reached"])])
async def test_a_store_is_told_of_only_where_it_is_shared(
    clock: Clock, caplog: pytest.LogCaptureFixture, alone: bool, told: list[str]
) -> None:
    sync = StoreSync(
        MemoryStore(clock), Fleet(clock), Sessions(b"k" * 32, clock, stricter=max), "gw-a", alone=alone
    )
    with caplog.at_level(logging.INFO):
        await sync.once()
    assert caplog.messages == told
