"""What every Store keeps; a test class per implementation inherits it and says how to make one.

Time to live is real time here, as a server keeps its own clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.state import NodeRecord, SessionRecord, Store
from tidegate.routing.domain import (
    Announcement,
    Binding,
    Health,
    NodeLoad,
    NodeState,
    ReplayClass,
    Speeds,
    Tier,
    Variant,
)

LONG_S = 30.0
SHORT_S = 0.2
MakeStore = Callable[[], Store]


def record(replica_id: str, node_id: str, *, health: Health = Health.READY, running: int = 0) -> NodeRecord:
    announcement = Announcement(
        node_id=node_id,
        boot_id="boot",
        name=f"Küche {node_id}",
        variants=(Variant("tide-1b", "d" * 64, "Q4_0", 4096, 11.5, frozenset({"token_ids"}), ("tide",)),),
        slots=4,
        queue_limit=16,
        build="b",
        replay_class=ReplayClass.TOKENS,
        replay_digest="r",
        hardware_class="hw",
        speeds=Speeds(1000.0, ((1, 50.0), (4, 30.0)), 5.0),
    )
    binding = Binding(Tier.CLOUD, "eu", "high", 2.5)
    state = NodeState(announcement, binding, NodeLoad(running=running), health, 12.5, linked_here=True)
    return NodeRecord(replica_id, state)


def turn(session: str, node_id: str = "n1", data_class: str = "internal") -> SessionRecord:
    return SessionRecord(session, node_id, "d" * 64, 128, data_class)


async def ids(store: Store) -> list[tuple[str, str]]:
    return sorted((r.replica_id, r.state.node_id) for r in await store.read_nodes())


class StoreContract:
    """`make_store` gives stores that share their data, as the replicas of one fleet do."""

    async def test_nothing_is_there_at_first(self, make_store: MakeStore) -> None:
        store = make_store()
        assert await store.read_nodes() == ()
        assert await store.read_sessions("") == ("", ())

    async def test_a_node_is_read_as_it_was_published(self, make_store: MakeStore) -> None:
        store = make_store()
        published = record("gw-1", "n1", running=2)
        await store.publish_nodes("gw-1", [published], LONG_S)
        (found,) = await store.read_nodes()
        assert found.replica_id == "gw-1"
        assert found.state.announcement == published.state.announcement
        assert found.state.binding == published.state.binding
        assert (found.state.health, found.state.rtt_ms, found.state.load.running) == (Health.READY, 12.5, 2)

    async def test_nobody_reads_a_node_as_linked_to_himself(self, make_store: MakeStore) -> None:
        store = make_store()
        await store.publish_nodes("gw-1", [record("gw-1", "n1")], LONG_S)
        assert [r.state.linked_here for r in await store.read_nodes()] == [False]

    async def test_publishing_replaces_what_the_replica_said_before(self, make_store: MakeStore) -> None:
        store = make_store()
        await store.publish_nodes("gw-1", [record("gw-1", "n1"), record("gw-1", "n2")], LONG_S)
        await store.publish_nodes("gw-1", [record("gw-1", "n2", health=Health.DRAINING)], LONG_S)
        (found,) = await store.read_nodes()
        assert (found.state.node_id, found.state.health) == ("n2", Health.DRAINING)
        await store.publish_nodes("gw-1", [], LONG_S)
        assert await store.read_nodes() == ()

    async def test_replicas_see_each_other_and_do_not_overwrite(self, make_store: MakeStore) -> None:
        one, two = make_store(), make_store()
        await one.publish_nodes("gw-1", [record("gw-1", "n1"), record("gw-1", "both")], LONG_S)
        await two.publish_nodes("gw-2", [record("gw-2", "n2"), record("gw-2", "both")], LONG_S)
        expected = [("gw-1", "both"), ("gw-1", "n1"), ("gw-2", "both"), ("gw-2", "n2")]
        assert await ids(one) == await ids(two) == expected

    async def test_a_silent_replica_is_forgotten_and_the_others_stay(self, make_store: MakeStore) -> None:
        store = make_store()
        await store.publish_nodes("gw-1", [record("gw-1", "n1")], SHORT_S)
        await store.publish_nodes("gw-2", [record("gw-2", "n2")], LONG_S)
        assert len(await store.read_nodes()) == 2
        await asyncio.sleep(SHORT_S + 0.1)
        assert await ids(store) == [("gw-2", "n2")]
        await store.publish_nodes("gw-1", [record("gw-1", "n1")], LONG_S)  # and it can come back
        assert len(await store.read_nodes()) == 2

    async def test_a_thousand_nodes_fit(self, make_store: MakeStore) -> None:
        store = make_store()
        await store.publish_nodes("gw-1", [record("gw-1", f"n{i}") for i in range(1000)], LONG_S)
        assert len(await store.read_nodes()) == 1000

    async def test_sessions_are_read_once_and_in_order(self, make_store: MakeStore) -> None:
        one, two = make_store(), make_store()
        await one.append_sessions([turn("a"), turn("b", data_class="")])
        cursor, found = await two.read_sessions("")
        assert found == (turn("a"), turn("b", data_class=""))
        assert await two.read_sessions(cursor) == (cursor, ())
        await two.append_sessions([turn("a", "n2")])
        await one.append_sessions([])
        cursor, found = await two.read_sessions(cursor)
        assert found == (turn("a", "n2"),)
        _, everything = await one.read_sessions("")
        assert everything == (turn("a"), turn("b", data_class=""), turn("a", "n2"))

    async def test_pages_of_sessions_leave_none_out(self, make_store: MakeStore) -> None:
        store = make_store()
        wanted = [turn(f"s{i}") for i in range(2500)]
        await store.append_sessions(wanted)
        cursor, found = "", []
        while True:
            cursor, page = await store.read_sessions(cursor)
            if not page:
                break
            found += page
        assert found == wanted

    async def test_what_was_learned_is_handed_over_newest_first(self, make_store: MakeStore) -> None:
        one, two = make_store(), make_store()
        assert await two.read_learned() == {}
        await one.publish_learned({})
        await one.publish_learned({"node n1 d": "old", "class cpu d": "{}"})
        await two.publish_learned({"node n1 d": "new"} | {f"node m{i} d": "x" for i in range(1000)})
        found = await one.read_learned()
        assert (found["node n1 d"], found["class cpu d"], len(found)) == ("new", "{}", 1002)

    async def test_closing_twice_is_harmless(self, make_store: MakeStore) -> None:
        store = make_store()
        await store.close()
        await store.close()
