"""Round trips are measured at once on a new link and seldom on an old one: pings must not double its cost."""

from __future__ import annotations

from gateway_rig import Rig
from raw_node import RawNode

from gateway.transport.link_server import QUICK_PINGS
from tidegate.link import codec
from tidegate.routing.domain import CacheDelta, NodeLoad


async def pings_for(node: RawNode, heartbeats: int) -> int:
    """How many pings these heartbeats bring; a request to resync the cache marks the end."""
    for beat in range(heartbeats):
        await node.say(heartbeat=codec.load_to_pb(NodeLoad(running=beat)))
    await node.say(cache_report=codec.cache_to_pb(CacheDelta((b"x" * 16,), (), digest=7)))
    pings = 0
    while (kind := (await node.control.read()).WhichOneof("message")) != "cache_resync":
        pings += kind == "ping"
    return pings


async def test_many_heartbeats_bring_few_pings(rig: Rig) -> None:
    async with RawNode(rig.link_address) as node:
        await node.join()
        assert await pings_for(node, 3 * QUICK_PINGS) == QUICK_PINGS


async def test_the_first_heartbeats_bring_a_ping_each(rig: Rig) -> None:
    async with RawNode(rig.link_address) as node:
        await node.join()
        # One came with the handshake.
        assert await pings_for(node, QUICK_PINGS - 2) == QUICK_PINGS - 1
