"""A node that was thought silent and then speaks again is counted: operators see flapping links by it."""

from __future__ import annotations

import asyncio

from gateway_rig import Rig
from raw_node import RawNode

from tidegate.link import codec
from tidegate.routing.domain import Health, NodeLoad


def suspected(rig: Rig) -> float:
    event = {"event": "suspected"}
    return rig.app.metrics.registry.get_sample_value("tidegate_link_events_total", event) or 0.0


async def test_a_silence_that_ended_counts_once(rig: Rig) -> None:
    async with RawNode(rig.link_address) as node:
        await node.join()
        await node.be_ready()
        assert suspected(rig) == 0
        await rig.until_health("raw", Health.SUSPECT)
        for _ in range(3):
            await node.say(heartbeat=codec.load_to_pb(NodeLoad()))
        await rig.until_health("raw", Health.READY)
        assert suspected(rig) == 1


async def test_a_node_that_speaks_in_time_is_never_counted(rig: Rig) -> None:
    async with RawNode(rig.link_address) as node:
        await node.join()
        await node.be_ready()
        for _ in range(5):
            await asyncio.sleep(0.1)
            await node.say(heartbeat=codec.load_to_pb(NodeLoad()))
        assert rig.health("raw") is Health.READY
        assert suspected(rig) == 0
