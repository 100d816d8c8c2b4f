"""The burst: a plan that repeats itself, and counting that is fair."""

from __future__ import annotations

import dataclasses

import pytest

import tidegate
from tidegate_cli.demo.asking import Asked
from tidegate_cli.demo.burst import (
    BASELINES,
    BURST_S,
    OURS,
    QUALITY,
    SPEED,
    TAIL_S,
    Arrival,
    BurstResult,
    count,
    judge,
    new_act,
    plan_burst,
    surely_better,
)

ROUTE = tidegate.Route("id", "edge-a", tidegate.Tier.EDGE, "m", "d", p_good=0.6)
TIMINGS = tidegate.Timings(queue_ms=0, prefill_ms=0, ttft_ms=1, tpot_ms=1, total_ms=2)


def asked(outcome: str, *, tier: str = "edge", p_good: float = 0.6, ttft_ms: float = 10.0) -> Asked:
    route = dataclasses.replace(ROUTE, tier=tidegate.Tier(tier), p_good=p_good)
    completion = tidegate.Completion(
        request_id="r",
        text="",
        finish_reason=tidegate.FinishReason.LENGTH,
        usage=tidegate.Usage(1, 1),
        timings=TIMINGS,
        budget=tidegate.BudgetOutcome(outcome),
        attempts=1,
        route=route,
    )
    return Asked(completion, None, ttft_ms, 1, "edge-a")


def result(policy: str, good: list[bool], cloud: int = 0) -> BurstResult:
    return BurstResult(policy, sum(good), tuple(good), cloud, 0, (1.0,))


def test_plan_is_the_same_for_every_policy_and_run() -> None:
    prompts = [f"p{i}" for i in range(9)]
    plan = plan_burst(prompts, 0.7)
    assert plan == plan_burst(prompts, 0.7)
    assert plan != plan_burst(prompts, 0.7, seed=21)
    assert 35 <= len(plan) <= 65
    assert all(0 < a.at_s < BURST_S and a.prompt in prompts for a in plan)
    assert [a.at_s for a in plan] == sorted(a.at_s for a in plan)


def test_plan_asks_for_quality_with_patience_and_for_speed_without() -> None:
    plan = plan_burst(["p"], 0.7, seconds=200.0)
    kinds = {(a.min_p_good, a.budget) for a in plan}
    assert kinds == {(0.7, QUALITY), (0.0, SPEED)}
    share = sum(a.min_p_good > 0 for a in plan) / len(plan)
    assert 0.25 < share < 0.42


def test_no_request_is_cut_that_could_still_meet_its_budget() -> None:
    for arrival in plan_burst(["p"], 0.7):
        assert arrival.budget.ttft_ms is not None
        assert arrival.budget.tpot_ms is not None
        longest_ms = arrival.budget.ttft_ms + (arrival.max_tokens - 1) * arrival.budget.tpot_ms
        assert longest_ms < TAIL_S * 1000


def test_counting() -> None:
    arrivals = [Arrival(0.0, "p", SPEED, level, 8) for level in (0.0, 0.7, 0.7, 0.0, 0.0)]
    lost = Asked(None, tidegate.Unavailable("gone"), None, 0)
    outcomes = [
        asked("met", ttft_ms=30.0),
        asked("met", p_good=0.6),  # in time, but not good enough
        asked("met", tier="cloud", p_good=0.8),
        asked("missed", ttft_ms=900.0),
        lost,
    ]
    counted = count("tidegate", arrivals, outcomes)
    assert counted.good == (True, False, True, False, False)
    assert (counted.requests, counted.met, counted.cloud, counted.failed) == (5, 3, 1, 1)
    assert counted.quantile_ms(0.95) == 900.0
    assert counted.quantile_ms(0.0) == 10.0
    assert BurstResult("x", 0, (), 0, 0, ()).quantile_ms(0.5) is None


@pytest.mark.parametrize(
    ("theirs_only", "ours_only", "expected"),
    [(0, 0, False), (4, 0, False), (5, 0, True), (0, 9, False), (9, 5, False), (20, 5, True)],
)
def test_better_is_what_chance_would_rarely_do(theirs_only: int, ours_only: int, expected: bool) -> None:
    both = [(True, True)] * 10 + [(False, False)] * 3
    pairs = [(True, False)] * theirs_only + [(False, True)] * ours_only + both
    theirs, ours = result("x", [a for a, _ in pairs]), result(OURS, [b for _, b in pairs])
    assert surely_better(theirs, ours) is expected


def verdict(ours: BurstResult, **others: BurstResult) -> list[bool]:
    act = new_act()
    results = {p: others.get(p.replace("-", "_"), result(p, [False] * 10, cloud=9)) for p in BASELINES}
    judge(act, {**results, OURS: ours})
    return [holds for _, holds in act.checks]


def test_verdict_can_go_either_way() -> None:
    good = result(OURS, [True] * 9 + [False], cloud=3)
    assert verdict(good) == [True, True]
    # Someone else is better by more than chance.
    bad = result(OURS, [True] + [False] * 9, cloud=3)
    assert verdict(bad, round_robin=result("round-robin", [True] * 10)) == [False, True]
    # Nobody meets anything: that is no success.
    assert verdict(result(OURS, [False] * 10, cloud=3)) == [False, True]
    # All went to the cloud.
    assert verdict(result(OURS, [True] * 10, cloud=9)) == [True, False]
