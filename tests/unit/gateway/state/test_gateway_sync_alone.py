"""A replica whose store nobody else sees does not tell it of nodes, but of sessions, which are kept there."""

from __future__ import annotations

import pytest
from gateway_fakes import Clock, add_ready

from gateway.state import Fleet, Sessions
from gateway.state.memory_store import MemoryStore
from gateway.state.sync import StoreSync
from tidegate.routing.domain import SessionHint


@pytest.mark.parametrize("alone", [True, False])
async def test_nodes_are_told_only_where_another_replica_may_read(clock: Clock, alone: bool) -> None:
    store, fleet = MemoryStore(clock), Fleet(clock)
    sessions = Sessions(b"k" * 32, stricter=max)
    add_ready(fleet, "n1")
    sessions.put("s", SessionHint("n1", "digest", 5), "internal")
    sync = StoreSync(store, fleet, sessions, "gw-a", alone=alone)
    await sync.once()
    assert len(await store.read_nodes()) == (0 if alone else 1)
    assert len((await store.read_sessions(""))[1]) == 1
    assert sync.up
