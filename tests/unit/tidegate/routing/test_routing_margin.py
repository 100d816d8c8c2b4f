"""A margin that makes up for hopeful predictions, and goes when it is not needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from routing_fixtures import SMALL, always, cloud, fleet, node, query

from tidegate.routing.domain import Budget, OnMiss, RouteQuery, Tier
from tidegate.routing.explain import record, why
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.margin import Margins, budget_on, tightened
from tidegate.routing.odds import LogNormal
from tidegate.routing.plan import Plan, Refusal
from tidegate.routing.policy import route

MODEL = LearnedLatency()
BELIEVED = LogNormal(0.25)


def outcomes(
    margins: Margins, bias: float, target: float, seed: int = 1, requests: int = 6000
) -> Iterator[bool]:
    """A world whose times are exp(bias) times what is predicted. Requests come with all kinds of budgets, and
    run where the prediction, as believed, meets them often enough."""
    rng = Random(seed)
    asked = query(budget=Budget(ttft_ms=1000.0), target=target)
    for _ in range(requests):
        predicted_ms = math.exp(rng.uniform(math.log(300.0), math.log(1200.0)))
        limit = budget_on(replace(asked, margins=margins.of(asked)), Tier.EDGE).ttft_ms
        assert limit is not None
        if BELIEVED.within(limit / predicted_ms) < target:
            continue
        met = predicted_ms * math.exp(rng.gauss(bias, 0.25)) <= 1000.0
        margins.record(asked, Tier.EDGE, met=met)
        yield met


def share(met: list[bool]) -> float:
    return sum(met) / len(met)


@pytest.mark.parametrize("target", [0.9, 0.95])
def test_hopeful_predictions_come_to_keep_what_they_promise(target: float) -> None:
    met = list(outcomes(Margins(), 0.5, target))
    assert share(met[500:]) >= target - 0.01
    # The control: with no margin the same world keeps it less often.
    assert share(list(outcomes(Margins(limit=1.0), 0.5, target))) < target - 0.03


def test_honest_predictions_cost_nobody_their_budget() -> None:
    margins = Margins()
    met = list(outcomes(margins, 0.0, 0.9))
    assert share(met) > 0.9
    assert len(met) > 0.97 * len(list(outcomes(Margins(limit=1.0), 0.0, 0.9)))


def test_it_is_bounded_and_falls_back() -> None:
    margins, asked = Margins(limit=2.0), query(budget=Budget(ttft_ms=500.0), target=0.9)
    for _ in range(500):
        margins.record(asked, Tier.EDGE, met=False)
    assert margins.of(asked) == {Tier.EDGE: pytest.approx(2.0)}
    margins.decay(300.0)
    assert margins.largest(Tier.EDGE) == pytest.approx(math.sqrt(2.0))
    for _ in range(500):
        margins.record(asked, Tier.EDGE, met=True)
    assert margins.of(asked) == {}
    assert margins.largest(Tier.EDGE) == 1.0


def test_without_news_it_goes_so_that_nobody_is_kept_out_for_good() -> None:
    margins, asked = Margins(), query(budget=Budget(ttft_ms=500.0))
    for _ in range(50):
        margins.record(asked, Tier.EDGE, met=False)
    for _ in range(60):
        margins.decay(60.0)
    assert margins.of(asked) == {}


def test_tiers_kinds_of_budgets_and_promises_are_kept_apart() -> None:
    margins, asked = Margins(), query(budget=Budget(ttft_ms=500.0), target=0.9)
    for _ in range(10):
        margins.record(asked, Tier.EDGE, met=False)
    assert set(margins.of(asked)) == {Tier.EDGE}
    assert set(margins.of(replace(asked, budget=Budget(ttft_ms=90.0), target_share=0.91))) == {Tier.EDGE}
    for other in (
        replace(asked, budget=Budget(total_ms=500.0)),
        replace(asked, budget=Budget(ttft_ms=500.0, tpot_ms=9.0)),
        replace(asked, target_share=0.99),
    ):
        assert margins.of(other) == {}


def test_only_what_is_left_of_a_budget_is_divided() -> None:
    budget = Budget(1000.0, 20.0, 3000.0, 0.9)
    assert tightened(budget, 1.0, 400.0) is budget
    assert tightened(budget, 2.0, 400.0) == Budget(700.0, 10.0, 1700.0, 0.9)
    assert tightened(Budget(ttft_ms=300.0), 2.0, 400.0) == Budget(ttft_ms=300.0)


def asking(factor: float, ttft_ms: float, **changes: object) -> RouteQuery:
    asked = query(budget=Budget(ttft_ms=ttft_ms), **changes)  # type: ignore[arg-type]
    return replace(asked, margins={Tier.EDGE: factor})


def test_a_margin_sends_the_close_ones_to_the_other_tier_and_says_so() -> None:
    both = fleet(node(), cloud())
    close_ms = MODEL.predict(node(), SMALL, query()).ttft_p95_ms
    for factor, expected in ((1.0, "edge-0"), (1.5, "cloud-0")):
        plan = route(both, asking(factor, close_ms), MODEL, always(0.0))
        assert isinstance(plan, Plan)
        assert plan.first.node.announcement.name == expected
    edge = next(i for i, c in enumerate(plan.choices) if c.node.binding.tier is Tier.EDGE)
    assert "P(meets budget with 33 % of it to spare) " in why(plan, edge)
    assert "to spare" not in why(plan)
    assert record(plan)["margins"] == {"edge": 1.5}


@pytest.mark.parametrize("on_miss", OnMiss)
def test_where_nobody_has_time_to_spare_the_budget_counts_as_asked(on_miss: OnMiss) -> None:
    close_ms = MODEL.predict(node(), SMALL, query()).ttft_p95_ms
    plan = route(fleet(node()), asking(1.5, close_ms, on_miss=on_miss), MODEL, always(0.0))
    assert isinstance(plan, Plan)
    assert not plan.at_risk
    assert plan.first.p_meet == pytest.approx(0.95)
    assert "to spare" not in why(plan)
    hopeless = route(fleet(node()), asking(1.5, 1.0, on_miss=on_miss), MODEL, always(0.0))
    assert isinstance(hopeless, Refusal) is (on_miss is OnMiss.REJECT)
