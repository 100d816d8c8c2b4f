"""Act b: the same burst under four policies on the same fleet."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from math import comb
from statistics import median

import tidegate
from tidegate_cli.demo.asking import Asked, ask
from tidegate_cli.demo.report import Act, Stage
from tidegate_cli.render import ms
from tidegate_cli.stack import LocalFleet

OURS = "tidegate"
BASELINES = ("round-robin", "always-edge", "always-cloud")
BURST_S = 20.0
SEED = 20
MAX_TOKENS = (8, 16, 32)
# A difference that chance alone would make more often than this is no difference.
CHANCE = 0.05
# Prompts looked at to fit the burst to them and to the machine.
PROBES = 32
RATE_PER_S = 2.5
# Share of what the nodes could answer one after the other: enough for queues, not a flood.
SHARE_OF_CAPACITY = 0.5
# Times the prediction on an idle node: room for a short queue.
MARGIN = 3.0
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


@dataclass(frozen=True, slots=True)
class Shape:
    """What is asked in a burst. `level`: the P(good) that its patient third wants."""

    level: float
    rate_per_s: float = RATE_PER_S
    speed: tidegate.Budget = SPEED
    quality: tidegate.Budget = QUALITY

    @property
    def tail_s(self) -> float:
        """A deadline that cuts no request which could still meet its budget."""
        longest_ms = max(
            (b.ttft_ms or 0.0) + (b.tpot_ms or 0.0) * max(MAX_TOKENS) for b in (self.speed, self.quality)
        )
        return longest_ms / 1000


def fitted_shape(decisions: list[tidegate.Decision]) -> Shape:
    """From what was predicted for typical prompts on the idle fleet: slow machines and long prompts get
    fewer requests and longer budgets, fast ones the usual."""
    candidates = [d.explanation.candidates for d in decisions if d.explanation.candidates]
    if not candidates:
        return Shape(level=0.0)
    goods = [[c.route.p_good or 0.0 for c in each] for each in candidates]
    capacity = [sum(1000 / max(1.0, c.route.predicted_total_ms) for c in each) for each in candidates]
    fastest = median([min(c.route.predicted_ttft_ms for c in each) for each in candidates])
    slowest = median([max(c.route.predicted_ttft_ms for c in each) for each in candidates])
    return Shape(
        # Between the tiers for the typical prompt.
        level=median([(min(each) + max(each)) / 2 for each in goods]),
        rate_per_s=min(RATE_PER_S, SHARE_OF_CAPACITY * median(capacity)),
        speed=_at_least(SPEED, MARGIN * fastest),
        quality=_at_least(QUALITY, MARGIN * slowest),
    )


def _at_least(budget: tidegate.Budget, ttft_ms: float) -> tidegate.Budget:
    return replace(budget, ttft_ms=max(budget.ttft_ms or 0.0, ttft_ms))


def plan_burst(
    prompts: list[str], shape: Shape, *, seconds: float = BURST_S, seed: int = SEED
) -> list[Arrival]:
    """Poisson arrivals, at least one; two thirds want speed, one third quality with a loose budget."""
    rng = random.Random(seed)
    arrivals: list[Arrival] = []
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(shape.rate_per_s)) < seconds or not arrivals:
        wants_quality = rng.random() < 1 / 3
        arrivals.append(
            Arrival(
                at_s=min(at_s, seconds),
                prompt=rng.choice(prompts),
                budget=shape.quality if wants_quality else shape.speed,
                min_p_good=shape.level if wants_quality else 0.0,
                max_tokens=rng.choice(MAX_TOKENS),
            )
        )
    return arrivals


async def run_burst(fleet: LocalFleet, policy: str, arrivals: list[Arrival], tail_s: float) -> BurstResult:
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
                deadline_s=tail_s,
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
    shape = await _shape(stage)
    arrivals = plan_burst(stage.prompts, shape)
    stage.say(
        f"  {len(arrivals)} requests; two thirds want TTFT within {ms(shape.speed.ttft_ms)}, the others "
        f"P(good) of {shape.level:.2f} within {ms(shape.quality.ttft_ms)}"
    )
    results = {}
    for policy in (*BASELINES, OURS):
        stage.say(f"  {policy} ...")
        results[policy] = await run_burst(stage.fleet, policy, arrivals, shape.tail_s)
        act.row(*_cells(results[policy]))
    judge(act, results)


async def _shape(stage: Stage) -> Shape:
    async with tidegate.Client(stage.fleet.address) as client:
        prompts = stage.prompts[:PROBES]
        return fitted_shape([await client.explain(p, max_tokens=MAX_TOKENS[1]) for p in prompts])


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
