"""Long prompts leave busy cheap nodes to others."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from routing_fixtures import LARGE, SMALL, always, cloud, fleet, node, query

from tidegate.routing.crowding import MAX_MODELS, WEIGHT, Crowding
from tidegate.routing.domain import Budget, NodeLoad, NodeState, RouteQuery, Snapshot, Tier
from tidegate.routing.explain import record, why
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.plan import MAX_CANDIDATES, Pick, Plan
from tidegate.routing.policy import route

MODEL = LearnedLatency()
BUDGET = Budget(ttft_ms=9000.0)
# An edge node reads 700 tokens/s here, so these take 0.2 and 2 s there.
SHORT, LONG = 140, 1400


def busy(running: int, name: str = "edge-0") -> NodeState:
    return node(name, load=NodeLoad(running=running, pending_decode_tokens=running * 8))


def asked(tokens: int, budget: Budget = BUDGET, longest_ms: float = math.inf) -> RouteQuery:
    return replace(query(prompt_tokens=tokens, budget=budget), longest_ms=longest_ms)


def plan_of(snapshot: Snapshot, request: RouteQuery) -> Plan:
    plan = route(snapshot, request, MODEL, always(0.0))
    assert isinstance(plan, Plan), plan
    return plan


def seen(crowding: Crowding, running: int, *tokens: int, rounds: int = 300) -> Crowding:
    """Decisions about such prompts, over and over, with so many slots of four taken."""
    plans = [plan_of(fleet(busy(running), cloud()), asked(each)) for each in tokens]
    for _ in range(rounds):
        for plan in plans:
            crowding.decided(plan)
    return crowding


def test_a_long_prompt_leaves_busy_cheap_nodes_and_a_short_one_stays() -> None:
    nodes = fleet(busy(3), busy(3, "edge-1"), cloud())
    longest_ms = seen(Crowding(), 3, SHORT, SHORT, SHORT, LONG).longest_ms("auto")
    left = plan_of(nodes, asked(LONG, longest_ms=longest_ms))
    assert (left.first.node.binding.tier, left.pick) == (Tier.CLOUD, Pick.CROWDED)
    assert "leaves busy cheaper nodes to shorter prompts" in why(left)
    assert record(left)["longest_ms"] == round(longest_ms, 2)
    stays = plan_of(nodes, asked(SHORT, longest_ms=longest_ms))
    assert stays.first.node.binding.tier is Tier.EDGE
    # Control: without what was learned the long one takes the cheapest, like everybody.
    assert plan_of(nodes, asked(LONG)).first.node.binding.tier is Tier.EDGE


def test_the_limit_is_the_mean_of_what_fits_by_the_share_of_taken_slots() -> None:
    own_ms = [
        plan_of(fleet(busy(3), cloud()), asked(tokens)).choices[0].prediction.own_prefill_ms
        for tokens in (SHORT, LONG)
    ]
    learned = seen(Crowding(), 3, SHORT, LONG, rounds=2000).longest_ms("auto")
    assert learned == pytest.approx(WEIGHT * (sum(own_ms) / 2) / 0.75, rel=0.02)


def test_cheap_nodes_teach_however_many_there_are() -> None:
    """More than a plan names: its candidates then all cost the same."""
    learned = []
    for running in (4, 0):
        edges = [busy(running, f"edge-{number}") for number in range(MAX_CANDIDATES + 4)]
        learned.append(plan_of(fleet(*edges, cloud()), asked(SHORT)))
    crowding = Crowding()
    for _ in range(300):
        crowding.decided(learned[0])
    crowded_ms = crowding.longest_ms("auto")
    assert crowded_ms < math.inf
    for _ in range(300):
        crowding.decided(learned[1])
    assert crowding.longest_ms("auto") > 10 * crowded_ms


def test_models_are_kept_apart() -> None:
    """Prompts of a slow model whose nodes are idle push nobody off the busy nodes of a fast one."""
    slow, fast = (replace(SMALL, model=name, digest=name, aliases=()) for name in ("slow", "fast"))
    large = tuple(replace(LARGE, model=v.model, digest=f"large-{v.model}", aliases=()) for v in (slow, fast))
    idle = node("idle", variants=(slow,))
    crowded = replace(busy(3, "crowded"), announcement=node("crowded", variants=(fast,)).announcement)
    nodes, crowding = fleet(idle, crowded, cloud(variants=large)), Crowding()
    for _ in range(300):
        crowding.decided(plan_of(nodes, replace(asked(SHORT), model="fast")))
    assert crowding.longest_ms("fast") < math.inf
    longest_ms = crowding.longest_ms("slow")
    plan = plan_of(nodes, replace(asked(LONG, longest_ms=longest_ms), model="slow"))
    assert (plan.first.node.announcement.name, plan.pick) == ("idle", Pick.CHEAPEST)


def test_no_more_models_are_remembered_than_a_replica_has_room_for() -> None:
    crowding, plan = Crowding(), plan_of(fleet(busy(3), cloud()), asked(SHORT))
    for number in range(MAX_MODELS + 1):
        crowding.decided(replace(plan, query=replace(plan.query, model=f"m{number}")))
    assert crowding.longest_ms("m0") == math.inf
    assert crowding.longest_ms("m1") < math.inf


def test_prompts_that_never_fit_there_count_for_nothing() -> None:
    tight = Budget(ttft_ms=500.0)
    crowding = seen(Crowding(), 3, SHORT)
    before = crowding.longest_ms("auto")
    unfit = plan_of(fleet(busy(3), cloud()), asked(LONG, tight))
    for _ in range(300):
        crowding.decided(unfit)
    assert crowding.longest_ms("auto") == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize("running", [0, 4])
def test_idle_nodes_take_any_prompt(running: int) -> None:
    longest_ms = seen(Crowding(), running, SHORT, SHORT, SHORT, LONG).longest_ms("auto")
    assert (longest_ms == math.inf) is (running == 0)


def test_a_dearer_node_that_does_not_qualify_is_no_way_out() -> None:
    far = fleet(busy(2), cloud(rtt_ms=30_000.0))
    plan = plan_of(far, asked(LONG, longest_ms=1.0))
    assert plan.first.node.binding.tier is Tier.EDGE
    # Nor are nodes of the same cost.
    assert plan_of(fleet(busy(2), busy(2, "edge-1")), asked(LONG, longest_ms=1.0)).pick is not Pick.CROWDED


def test_nothing_is_learned_where_all_cost_the_same_or_by_weight_0() -> None:
    crowding = Crowding()
    alike = plan_of(fleet(busy(4), busy(4, "edge-1")), asked(LONG))
    for _ in range(300):
        crowding.decided(alike)
    assert crowding.longest_ms("auto") == math.inf
    assert seen(Crowding(0.0), 4, SHORT, LONG).longest_ms("auto") == math.inf


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_a_weight_is_a_number_from_0(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        Crowding(weight)


def test_slots_that_are_not_used_now_are_not_free() -> None:
    def learned(usable: int) -> float:
        load = NodeLoad(running=1, pending_decode_tokens=8, usable_slots=usable)
        plan = plan_of(fleet(node(load=load), cloud()), asked(LONG))
        crowding = Crowding()
        for _ in range(300):
            crowding.decided(plan)
        return crowding.longest_ms(plan.query.model)

    # One of two is twice as crowded as one of four.
    assert learned(2) == pytest.approx(learned(0) / 2)
