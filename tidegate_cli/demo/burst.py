"""Act b: the same burst under four policies on the same fleet."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import tidegate
from tidegate_cli.demo.asking import Asked, ask
from tidegate_cli.demo.report import Act
from tidegate_cli.render import ms
from tidegate_cli.stack import LocalFleet

POLICIES = ("round-robin", "always-edge", "always-cloud", "tidegate")
BURST_S = 20.0
RATE_PER_S = 2.5
TAIL_S = 15.0
SEED = 20

HEADER = (
    "policy",
    "requests",
    "budget met",
    "met and good enough",
    "cloud requests",
    "p50 TTFT",
    "p95 TTFT",
    "failed",
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of the burst. `min_p_good` 0 asks nothing of the quality."""

    at_s: float
    prompt: str
    budget: tidegate.Budget
    min_p_good: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class BurstResult:
    policy: str
    requests: int
    met: int
    met_and_good: int
    cloud: int
    failed: int
    ttfts_ms: tuple[float, ...]

    def quantile_ms(self, q: float) -> float | None:
        ordered = sorted(self.ttfts_ms)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


def plan_burst(prompts: list[str], level: float, seed: int = SEED) -> list[Arrival]:
    """Poisson arrivals; two thirds want speed, one third asks for quality with a loose budget."""
    rng = random.Random(seed)
    arrivals = []
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(RATE_PER_S)) < BURST_S:
        wants_quality = rng.random() < 1 / 3
        budget = (
            tidegate.Budget(ttft_ms=4000, tpot_ms=250)
            if wants_quality
            else tidegate.Budget(ttft_ms=1000, tpot_ms=150)
        )
        arrivals.append(
            Arrival(
                at_s=at_s,
                prompt=rng.choice(prompts),
                budget=budget,
                min_p_good=level if wants_quality else 0.0,
                max_tokens=rng.choice((8, 16, 32)),
            )
        )
    return arrivals


async def run_burst(fleet: LocalFleet, policy: str, arrivals: list[Arrival]) -> BurstResult:
    """Restarts the gateway with the policy and plays the burst in real time."""
    await fleet.children["gateway"].stop(3.0)
    await fleet.start_gateway(policy)
    await fleet.wait_whole()
    async with tidegate.Client(fleet.address) as client:
        loop = asyncio.get_running_loop()
        started_s = loop.time()

        async def one(arrival: Arrival) -> Asked:
            await asyncio.sleep(started_s + arrival.at_s - loop.time())
            return await ask(
                client,
                arrival.prompt,
                budget=arrival.budget,
                min_p_good=arrival.min_p_good,
                max_tokens=arrival.max_tokens,
                temperature=0.0,
                deadline_s=TAIL_S,
            )

        asked = await asyncio.gather(*(one(a) for a in arrivals))
    return _result(policy, arrivals, asked)


def _result(policy: str, arrivals: list[Arrival], asked: list[Asked]) -> BurstResult:
    met = [a.met == "met" for a in asked]
    good = [
        a.completion is not None
        and a.completion.route is not None
        and a.completion.route.p_good >= arrival.min_p_good
        for arrival, a in zip(arrivals, asked, strict=True)
    ]
    return BurstResult(
        policy=policy,
        requests=len(asked),
        met=sum(met),
        met_and_good=sum(m and g for m, g in zip(met, good, strict=True)),
        cloud=sum(a.tier == "cloud" for a in asked),
        failed=sum(a.completion is None for a in asked),
        ttfts_ms=tuple(a.ttft_ms for a in asked if a.ttft_ms is not None),
    )


async def burst_act(fleet: LocalFleet, prompts: list[str], level: float) -> Act:
    act = Act("burst", "b. The same 20-second burst under four policies, same fleet", HEADER)
    arrivals = plan_burst(prompts, level)
    results = {}
    for policy in POLICIES:
        r = results[policy] = await run_burst(fleet, policy, arrivals)
        share = f"{100 * r.met / r.requests:.0f} %"
        good = f"{100 * r.met_and_good / r.requests:.0f} %"
        act.row(
            policy,
            str(r.requests),
            share,
            good,
            str(r.cloud),
            ms(r.quantile_ms(0.5)),
            ms(r.quantile_ms(0.95)),
            str(r.failed),
        )
    ours, others = results["tidegate"], [results[p] for p in POLICIES if p != "tidegate"]
    best = max(o.met_and_good for o in others)
    act.check(
        "no other policy meets budget and quality more often (3 points of measuring noise allowed)",
        ours.met_and_good >= best - 0.03 * ours.requests,
    )
    act.check("with fewer cloud requests than always-cloud", ours.cloud < results["always-cloud"].cloud)
    return act
