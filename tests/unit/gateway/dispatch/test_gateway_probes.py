"""Idle nodes are asked for a few tokens when nothing was heard of their speed for long."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from dispatch_rig import NODES, Rig, answer, ask
from gateway_fakes import add_ready

from gateway.dispatch.caller import Client
from gateway.dispatch.probes import TENANT, Probes
from tidegate.routing.domain import NodeLoad, Power
from tidegate.routing.plan import Plan

pytestmark = pytest.mark.looptime


def probes(rig: Rig, after_s: float = 300.0) -> Probes:
    return Probes(
        rig.fleet,
        rig.nodes,
        rig.latency,
        rig.facts,
        after_s=after_s,
        clock=asyncio.get_running_loop().time,
        rng=lambda: 0.0,
        new_token=lambda: "unguessable-token",
    )


async def pass_time(rig: Rig, seconds: float) -> None:
    await asyncio.sleep(seconds)
    rig.latency.decay(seconds)


async def test_a_node_is_probed_once_it_was_quiet_for_long_and_idle() -> None:
    rig = Rig(n1=[answer(4)] * 3)
    probing = probes(rig)
    assert not await probing.once()  # it has only just been seen
    await pass_time(rig, 290.0)
    assert not await probing.once()
    await pass_time(rig, 20.0)
    metered = Power(metered=True)
    for not_now in (
        NodeLoad(running=1),
        NodeLoad(wake_ms=900.0),
        NodeLoad(power=metered),
        NodeLoad(draining=True),
    ):
        rig.fleet.heartbeat("n1", not_now)
        assert not await probing.once()
    rig.fleet.heartbeat("n1", NodeLoad(power=Power(on_battery=True, battery_share=0.1)))  # none is spared
    assert await probing.once()
    assert [(n, w.tenant, w.max_tokens) for n, w in rig.nodes.works] == [("n1", TENANT, 4)]
    assert not await probing.once()
    await pass_time(rig, 310.0)
    assert await probing.once()


async def test_who_worked_of_late_is_not_probed_and_zero_probes_nobody() -> None:
    rig = Rig(n1=[answer(4)] * 2)
    probing = probes(rig)
    await probing.once()
    await pass_time(rig, 310.0)
    await rig.run(ask())
    assert not await probing.once()
    await pass_time(rig, 310.0)
    assert not await probes(rig, after_s=0.0).once()
    assert await probing.once()  # control


async def test_a_shunned_node_shows_by_a_probe_that_it_recovered() -> None:
    rig = Rig(n1=[answer(4, 3.0)] * 6 + [answer(4, 0.1)] * 9, n2=[answer(4, 0.1)] * 60)
    probing = probes(rig)
    for _ in range(6):
        await rig.run(ask())  # n1 is the cheapest
    for number in range(30):  # its class learns from the others
        rig.fleet.heartbeat("n1", NodeLoad(draining=True))
        await rig.run(ask(f"other{number}"))
    rig.fleet.heartbeat("n1", NodeLoad())

    def expected_ms() -> float:
        result = rig.dispatcher.explain(ask(), Client()).result
        assert isinstance(result, Plan)
        return next(c.prediction.ttft_ms for c in result.choices if c.node.node_id == "n1")

    slow_ms = expected_ms()
    assert slow_ms > 1000
    await probing.once()
    probed = 0
    for _ in range(9):
        await pass_time(rig, 61.0)
        probed += await probing.once()
    assert 1 <= probed <= 6
    assert expected_ms() < slow_ms / 3


@pytest.mark.parametrize(("floor", "probed"), [(0.5, False), (0.05, True)])
async def test_a_node_that_spares_its_battery_is_not_probed(floor: float, probed: bool) -> None:
    rig = Rig(n1=[answer(4)])
    add_ready(rig.fleet, "n1", replace(NODES["n1"], battery_floor=floor))
    rig.fleet.heartbeat("n1", NodeLoad(power=Power(on_battery=True, battery_share=0.1)))
    probing = probes(rig)
    await probing.once()
    await pass_time(rig, 310.0)
    assert await probing.once() is probed
