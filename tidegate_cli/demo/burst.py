"""Act b: the same burst under four policies on the same fleet."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from math import comb

import tidegate
from tidegate_cli.demo.asking import Asked, ask
from tidegate_cli.demo.report import Act, Stage
from tidegate_cli.render import ms
from tidegate_cli.stack import LocalFleet

OURS = "tidegate"
BASELINES = ("round-robin", "always-edge", "always-cloud")
BURST_S = 20.0
RATE_PER_S = 2.5
# Longer than any budget below allows, so that no request is cut that could still meet its own.
TAIL_S = 12.0
SEED = 20
# A difference that chance alone would make more often than this is no difference.
CHANCE = 0.05
LEVEL_PROMPTS = 32

SPEED = tidegate.Budget(ttft_ms=1000, tpot_ms=150)
QUALITY = tidegate.Budget(ttft_ms=4000, tpot_ms=250)

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
    """`good` says for each arrival whether its budget was met by a variant that is good enough."""

    policy: str
    met: int
    good: tuple[bool, ...]
    cloud: int
    failed: int
    ttfts_ms: tuple[float, ...]

    @property
    def requests(self) -> int:
        return len(self.good)

    def quantile_ms(self, q: float) -> float | None:
        ordered = sorted(self.ttfts_ms)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


def plan_burst(
    prompts: list[str],
    level: float,
    *,
    seconds: float = BURST_S,
    rate_per_s: float = RATE_PER_S,
    seed: int = SEED,
) -> list[Arrival]:
    """Poisson arrivals; two thirds want speed, one third asks for quality with a loose budget."""
    rng = random.Random(seed)
    arrivals = []
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(rate_per_s)) < seconds:
        wants_quality = rng.random() < 1 / 3
        arrivals.append(
            Arrival(
                at_s=at_s,
                prompt=rng.choice(prompts),
                budget=QUALITY if wants_quality else SPEED,
                min_p_good=level if wants_quality else 0.0,
                max_tokens=rng.choice((8, 16, 32)),
            )
        )
    return arrivals


async def run_burst(fleet: LocalFleet, policy: str, arrivals: list[Arrival]) -> BurstResult:
    """Restarts the gateway with the policy and plays the burst in real time."""
    await fleet.restart_gateway(policy)
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
    return count(policy, arrivals, asked)


def count(policy: str, arrivals: list[Arrival], asked: list[Asked]) -> BurstResult:
    return BurstResult(
        policy=policy,
        met=sum(a.met == "met" for a in asked),
        good=tuple(
            a.met == "met" and a.p_good >= arrival.min_p_good
            for arrival, a in zip(arrivals, asked, strict=True)
        ),
        cloud=sum(a.tier == "cloud" for a in asked),
        failed=sum(a.completion is None for a in asked),
        ttfts_ms=tuple(a.ttft_ms for a in asked if a.ttft_ms is not None),
    )


def surely_better(other: BurstResult, ours: BurstResult) -> bool:
    """Sign test over the same arrivals: would chance give the other this lead in fewer than CHANCE cases?"""
    pairs = list(zip(other.good, ours.good, strict=True))
    theirs, mine = pairs.count((True, False)), pairs.count((False, True))
    n = theirs + mine
    at_least_so_many = sum(comb(n, k) for k in range(theirs, n + 1))
    return at_least_so_many < CHANCE * 2.0**n


def new_act() -> Act:
    return Act("burst", f"b. The same {BURST_S:.0f}-second burst under four policies, same fleet", HEADER)


async def play_burst(stage: Stage, act: Act) -> None:
    arrivals = plan_burst(stage.prompts, await _level(stage))
    results = {}
    for policy in (*BASELINES, OURS):
        stage.say(f"  {policy}: {len(arrivals)} requests in {BURST_S:.0f} s")
        results[policy] = await run_burst(stage.fleet, policy, arrivals)
        act.row(*_cells(results[policy]))
    judge(act, results)


def judge(act: Act, results: dict[str, BurstResult]) -> None:
    ours = results[OURS]
    act.check(
        "no other policy meets budget and quality more often, beyond chance (sign test, 5 %)",
        sum(ours.good) > 0 and not any(surely_better(results[p], ours) for p in BASELINES),
    )
    act.check("with fewer cloud requests than always-cloud", ours.cloud < results["always-cloud"].cloud)


def _cells(r: BurstResult) -> tuple[str, ...]:
    return (
        r.policy,
        str(r.requests),
        f"{100 * r.met / r.requests:.0f} %",
        f"{100 * sum(r.good) / r.requests:.0f} %",
        str(r.cloud),
        ms(r.quantile_ms(0.5)),
        ms(r.quantile_ms(0.95)),
        str(r.failed),
    )


async def _level(stage: Stage) -> float:
    """A quality level between the tiers for the typical prompt: the median of the midpoints."""
    levels = []
    async with tidegate.Client(stage.fleet.address) as client:
        for prompt in stage.prompts[:LEVEL_PROMPTS]:
            goods = [c.route.p_good for c in (await client.explain(prompt)).explanation.candidates]
            if goods:
                levels.append((min(goods) + max(goods)) / 2)
    return sorted(levels)[len(levels) // 2] if levels else 0.0
