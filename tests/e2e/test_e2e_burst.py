"""The demo's burst on the shared fleet, a few seconds of it."""

from __future__ import annotations

import tidegate
from tidegate_cli.demo.burst import OURS, Shape, fitted_shape, plan_burst, run_burst
from tidegate_cli.stack import LocalFleet

PROMPT = "Prove that the square root of two is irrational."


async def test_policies_differ_as_their_names_say(fleet: LocalFleet) -> None:
    async with tidegate.Client(fleet.address) as client:
        level = fitted_shape([await client.explain(PROMPT)]).level
    shape = Shape(level, rate_per_s=6.0)
    plan = plan_burst([PROMPT], shape, seconds=2.5)
    assert len(plan) >= 8
    cloud = await run_burst(fleet, "always-cloud", plan, shape.tail_s)
    ours = await run_burst(fleet, OURS, plan, shape.tail_s)
    assert cloud.failed == ours.failed == 0
    assert cloud.cloud == len(plan)
    # Those that want quality, and only those.
    assert ours.cloud == sum(arrival.min_p_good > 0 for arrival in plan) > 0
    assert ours.requests == len(plan) == len(ours.ttfts_ms)
