"""The burst: a plan that repeats itself, and counting that is fair."""

from __future__ import annotations

import dataclasses

import pytest

import tidegate
from tidegate.routing.domain import Candidate, Explanation
from tidegate_cli.demo.asking import Asked
from tidegate_cli.demo.burst import (
    BASELINES,
    BURST_S,
    OURS,
    QUALITY,
    RATE_PER_S,
    SPEED,
    Arrival,
    BurstResult,
    Shape,
    count,
    fitted_shape,
    judge,
    new_act,
    plan_burst,
    surely_better,
)

SHAPE = Shape(level=0.7)
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


def decision(edge_ms: float, cloud_ms: float) -> tidegate.Decision:
    routes = [
        dataclasses.replace(ROUTE, predicted_ttft_ms=ttft_ms, predicted_total_ms=ttft_ms + 100, p_good=p_good)
        for ttft_ms, p_good in ((edge_ms, 0.6), (edge_ms, 0.6), (cloud_ms, 0.8))
    ]
    explanation = Explanation(candidates=tuple(Candidate(route, True, 0.0) for route in routes))
    return tidegate.Decision(route=routes[0], explanation=explanation)


def test_fast_fleet_gets_the_usual_burst() -> None:
    shape = fitted_shape([decision(50, 300)] * 5)
    assert (shape.rate_per_s, shape.speed, shape.quality) == (RATE_PER_S, SPEED, QUALITY)
    assert shape.level == pytest.approx(0.7)


def test_slow_fleet_gets_fewer_requests_and_longer_budgets() -> None:
    shape = fitted_shape([decision(900, 1900)] * 5)
    # Two edge nodes answer one a second each, the cloud node one in two seconds; half of that is asked.
    assert shape.rate_per_s == pytest.approx(1.25)
    assert (shape.speed.ttft_ms, shape.quality.ttft_ms) == (2700, 5700)
    assert (shape.speed.tpot_ms, shape.quality.tpot_ms) == (SPEED.tpot_ms, QUALITY.tpot_ms)


def test_typical_prompts_decide_and_prompts_nobody_may_have_do_not_count() -> None:
    nobody = tidegate.Decision(route=None, explanation=Explanation())
    shape = fitted_shape([nobody, decision(900, 1900), decision(900, 1900), decision(90_000, 90_000)])
    assert shape.speed.ttft_ms == 2700
    assert fitted_shape([nobody]).level == 0.0


def test_plan_is_the_same_for_every_policy_and_run() -> None:
    prompts = [f"p{i}" for i in range(9)]
    plan = plan_burst(prompts, SHAPE)
    assert plan == plan_burst(prompts, SHAPE)
    assert plan != plan_burst(prompts, SHAPE, seed=21)
    assert 35 <= len(plan) <= 65
    assert all(0 < a.at_s < BURST_S and a.prompt in prompts for a in plan)
    assert [a.at_s for a in plan] == sorted(a.at_s for a in plan)


def test_plan_of_a_crawling_fleet_still_asks_something() -> None:
    (only,) = plan_burst(["p"], Shape(level=0.7, rate_per_s=0.0001))
    assert only.at_s == BURST_S


def test_plan_asks_for_quality_with_patience_and_for_speed_without() -> None:
    plan = plan_burst(["p"], SHAPE, seconds=200.0)
    kinds = {(a.min_p_good, a.budget) for a in plan}
    assert kinds == {(0.7, QUALITY), (0.0, SPEED)}
    share = sum(a.min_p_good > 0 for a in plan) / len(plan)
    assert 0.25 < share < 0.42


@pytest.mark.parametrize("shape", [Shape(0.7), fitted_shape([decision(900, 1900)])])
def test_no_request_is_cut_that_could_still_meet_its_budget(shape: Shape) -> None:
    for arrival in plan_burst(["p"], shape, seconds=100.0):
        assert arrival.budget.ttft_ms is not None
        assert arrival.budget.tpot_ms is not None
        longest_ms = arrival.budget.ttft_ms + (arrival.max_tokens - 1) * arrival.budget.tpot_ms
        assert longest_ms < shape.tail_s * 1000


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
