"""Nodes whose model is not loaded: candidates, with the time it takes to load it."""

from __future__ import annotations

from random import Random

import pytest
from routing_fixtures import SMALL, always, cloud, fleet, node, query

from tidegate.routing.costs import extra_cost
from tidegate.routing.domain import Budget, NodeLoad, NodeState, Power, Prices, RouteQuery, Snapshot
from tidegate.routing.explain import record, why
from tidegate.routing.exploring import explored
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.plan import Plan
from tidegate.routing.policy import route
from tidegate.routing.sampling import SCAN_LIMIT

MODEL = LearnedLatency()
WAKE_MS = 4000.0


def asleep(name: str = "asleep", **changes: object) -> NodeState:
    return node(name, load=NodeLoad(wake_ms=WAKE_MS), **changes)  # type: ignore[arg-type]


def plan_of(snapshot: Snapshot, asked: RouteQuery | None = None, chance: float = 0.0) -> Plan:
    decision = route(snapshot, asked or query(), MODEL, always(chance))
    assert isinstance(decision, Plan), decision
    return decision


def test_loading_is_part_of_the_prediction_and_of_nothing_that_is_learned() -> None:
    loaded, waking = (MODEL.predict(n, SMALL, query()) for n in (node("asleep"), asleep()))
    assert waking.ttft_ms == pytest.approx(loaded.ttft_ms + WAKE_MS)
    assert waking.total_ms == pytest.approx(loaded.total_ms + WAKE_MS)
    # How far predictions miss is no word on how far loading does.
    assert waking.ttft_p95_ms == pytest.approx(loaded.ttft_p95_ms + WAKE_MS)
    assert waking.awake()[3:] == loaded[3:]
    assert waking.awake().ttft_ms == pytest.approx(loaded.ttft_ms)
    budget = Budget(ttft_ms=loaded.ttft_p95_ms + WAKE_MS)
    assert MODEL.p_meet(waking, budget, 0.0) == pytest.approx(0.95, abs=1e-6)
    assert loaded.awake() is loaded


@pytest.mark.parametrize(
    ("ttft_ms", "expected"), [(1000.0, "cloud-0"), (3900.0, "cloud-0"), (9000.0, "asleep"), (None, "asleep")]
)
def test_the_cheap_node_is_woken_where_the_budget_leaves_time(ttft_ms: float | None, expected: str) -> None:
    plan = plan_of(fleet(asleep(), cloud()), query(budget=Budget(ttft_ms=ttft_ms)))
    assert plan.first.node.announcement.name == expected


def test_who_alone_may_answer_is_woken_and_the_reasons_say_so() -> None:
    plan = plan_of(fleet(asleep()), query(budget=Budget(ttft_ms=1000.0)))
    assert plan.at_risk
    assert "of it 4000 ms to load the model" in why(plan)
    assert record(plan)["candidates"][0]["wake_ms"] == WAKE_MS  # type: ignore[index]


def test_of_equals_nobody_is_woken() -> None:
    nodes = fleet(asleep("a"), node("b", load=NodeLoad(running=3)), asleep("c"))
    for chance in (0.0, 0.5, 0.999):
        plan = plan_of(nodes, chance=chance)
        assert plan.first.node.announcement.name == "b"
        assert explored(plan, always(0.999), share=0.1) is plan


def test_in_a_large_fleet_the_loaded_ones_are_found() -> None:
    """Who sleeps has no load, and would be drawn before all others."""
    nodes = [asleep(f"a{i}") for i in range(2 * SCAN_LIMIT)]
    nodes += [node(f"b{i}", load=NodeLoad(running=2)) for i in range(SCAN_LIMIT // 2)]
    rng = Random(7)
    plans = [route(fleet(*nodes), query(), MODEL, rng.random) for _ in range(20)]
    names = [p.first.node.announcement.name[0] for p in plans if isinstance(p, Plan)]
    assert names == ["b"] * 20


def test_loading_takes_energy_too() -> None:
    prices, load = Prices(per_wh=1.0), NodeLoad(power=Power(work_w=10.0))
    prediction = MODEL.predict(node(), SMALL, query())
    cold = extra_cost(prices, load, prediction._replace(wake_ms=36_000.0))
    warm = extra_cost(prices, load, prediction)
    assert cold is not None
    assert warm is not None
    tokens = prediction.asked_tokens + prediction.output_tokens
    assert (cold.energy - warm.energy) * tokens / 1e6 == pytest.approx(10.0 * 36.0 / 3600.0)
