"""What the comparisons do, and that they keep the hard filters."""

from __future__ import annotations

import pytest
from routing_fixtures import always, cloud, fleet, node, query

from tidegate.routing.baselines import POLICY_NAMES, policy_named
from tidegate.routing.domain import Budget, InFlight, NodeLoad, OnMiss, Placement, RouteQuery, Snapshot
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.plan import Pick, Plan, Reason, Refusal
from tidegate.routing.policy import Policy

FLEET = fleet(
    node("edge-0", load=NodeLoad(running=2)),
    node("edge-1", in_flight=InFlight(requests=1)),
    cloud("cloud-0", load=NodeLoad(running=3)),
)


def names(policy: Policy, snapshot: Snapshot = FLEET, asked: RouteQuery | None = None) -> list[str]:
    plan = policy.route(snapshot, asked or query(), LearnedLatency(), always(0.0))
    assert isinstance(plan, Plan)
    assert plan.pick is Pick.BASELINE
    assert plan.policy == policy.name
    return [c.node.announcement.name for c in plan.choices]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("least-outstanding", ["edge-1", "edge-0", "cloud-0"]),
        ("always-edge", ["edge-1", "edge-0"]),
        ("always-cloud", ["cloud-0"]),
    ],
)
def test_order(name: str, expected: list[str]) -> None:
    assert names(policy_named(name)) == expected


def test_round_robin_takes_turns_and_each_instance_its_own() -> None:
    policy = policy_named("round-robin")
    assert [names(policy)[0] for _ in range(4)] == ["cloud-0", "edge-0", "edge-1", "cloud-0"]
    assert names(policy_named("round-robin"))[0] == "cloud-0"


def test_ties_go_by_chance() -> None:
    snapshot = fleet(node("a"), node("b"))
    policy = policy_named("least-outstanding")
    seen = set()
    for chance in (0.0, 0.49, 0.51, 0.999):
        plan = policy.route(snapshot, query(), LearnedLatency(), always(chance))
        assert isinstance(plan, Plan)
        seen.add((chance < 0.5, plan.first.node.announcement.name))
    assert seen == {(True, "a"), (False, "b")}


def test_a_placement_asked_for_beats_the_baseline() -> None:
    assert names(policy_named("always-edge"), asked=query(placement=Placement.CLOUD)) == ["cloud-0"]


def test_no_node_in_the_tier_is_a_refusal() -> None:
    decision = policy_named("always-cloud").route(fleet(node()), query(), LearnedLatency(), always(0.0))
    assert isinstance(decision, Refusal)
    assert decision.reason is Reason.NOT_PERMITTED


@pytest.mark.parametrize("name", [n for n in POLICY_NAMES if n != "tidegate"])
def test_baselines_are_blind_to_the_budget_but_say_so(name: str) -> None:
    asked = query(budget=Budget(ttft_ms=1.0), on_miss=OnMiss.REJECT)
    plan = policy_named(name).route(FLEET, asked, LearnedLatency(), always(0.0))
    assert isinstance(plan, Plan)
    assert plan.at_risk


def test_nothing_to_choose_from_is_a_refusal_for_all() -> None:
    for name in POLICY_NAMES:
        assert isinstance(policy_named(name).route(fleet(), query(), LearnedLatency(), always(0.0)), Refusal)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="round-robin"):
        policy_named("magic")
