"""Energy, batteries and metered links: what they cost, and when they decide."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from routing_fixtures import SMALL, always, fleet, node, query

from tidegate.routing.costs import extra_cost
from tidegate.routing.domain import Health, NodeLoad, NodeState, Power, Prices, RouteQuery, Snapshot
from tidegate.routing.explain import explanation, record, why
from tidegate.routing.filters import Filter, pools
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.plan import Pick, Plan
from tidegate.routing.policy import route
from tidegate.routing.sampling import SCAN_LIMIT

MODEL = LearnedLatency()
PRICES = Prices(per_wh=0.3, per_metered_mb=0.01)


def priced(
    name: str,
    power: Power | None = None,
    *,
    prices: Prices | None = PRICES,
    floor: float = 0.0,
    **changes: object,
) -> NodeState:
    state = node(name, load=NodeLoad(power=power), **changes)  # type: ignore[arg-type]
    return replace(state, binding=replace(state.binding, prices=prices, battery_floor=floor))


def plan_of(snapshot: Snapshot, asked: RouteQuery | None = None, chance: float = 0.0) -> Plan:
    decision = route(snapshot, asked or query(), MODEL, always(chance))
    assert isinstance(decision, Plan), decision
    return decision


def test_energy_is_the_work_it_takes_times_its_price() -> None:
    state = priced("a", Power(work_w=36.0))
    prediction = MODEL.predict(state, SMALL, query())
    extra = extra_cost(PRICES, state.load, prediction)
    assert extra is not None
    seconds = (prediction.prefill_ms + (prediction.output_tokens - 1) * prediction.tpot_ms) / 1000
    tokens = 200 + prediction.output_tokens
    assert extra.energy * tokens / 1e6 == pytest.approx(36.0 * seconds / 3600 * 0.3)
    assert extra.link == 0.0
    # Four sequences share a step, so each takes less than alone although steps are slower.
    batched = extra_cost(PRICES, state.load, prediction._replace(batch_size=4))
    assert batched is not None
    assert batched.energy < extra.energy


@pytest.mark.parametrize(
    ("power", "prices"),
    [
        (None, PRICES),
        (Power(on_battery=True, battery_share=0.5, draw_w=7.0), PRICES),
        (Power(work_w=9.0), Prices(per_metered_mb=1.0)),
        (Power(metered=True), Prices(per_wh=1.0)),
    ],
)
def test_nothing_is_added_where_report_or_price_is_missing(power: Power | None, prices: Prices) -> None:
    state = priced("a", power)
    assert extra_cost(prices, state.load, MODEL.predict(state, SMALL, query())) is None
    assert plan_of(fleet(priced("a", power, prices=prices))).first.cost_per_mtoken == 0.0


def test_the_frugal_node_is_cheapest_although_slower() -> None:
    hungry, frugal = priced("hungry", Power(work_w=60.0)), priced("frugal", Power(work_w=6.0), rtt_ms=40.0)
    plan = plan_of(fleet(hungry, frugal))
    assert (plan.first.node.announcement.name, plan.pick) == ("frugal", Pick.CHEAPEST)
    # Control: without a price, speed decides.
    free = fleet(replace(hungry, binding=node().binding), replace(frugal, binding=node().binding))
    assert plan_of(free).first.node.announcement.name == "hungry"


def test_a_metered_link_loses_to_a_cheap_cloud_only_from_some_price_on() -> None:
    metered = Power(metered=True)
    for price, expected in ((0.001, "edge"), (0.1, "cloud")):
        snapshot = fleet(
            priced("edge", metered, prices=Prices(per_metered_mb=price)), priced("cloud", cost=0.6)
        )
        assert plan_of(snapshot).first.node.announcement.name == expected


def test_estimates_decide_nothing_by_a_hair() -> None:
    """Else replicas that look at the same view would all go to the node with the smallest estimate."""
    nodes = [priced(f"n{i}", Power(work_w=30.0 + 0.5 * i)) for i in range(4)]
    chosen = {plan_of(fleet(*nodes), chance=c / 8).first.node.announcement.name for c in range(8)}
    assert len(chosen) == 4
    # Stated prices do, however little they differ.
    stated = fleet(node("a", cost=0.600), node("b", cost=0.599))
    assert {plan_of(stated, chance=c / 8).first.node.announcement.name for c in range(8)} == {"b"}


def test_dearer_is_who_is_not_among_the_cheapest_whichever_of_these_is_named_first() -> None:
    """Costs of 9.0, 8.3 and 9.5: the first two are equal, and so would be the first and the last."""
    nodes = [priced(f"n{i}", Power(work_w=watts)) for i, watts in enumerate((32.4, 30.0, 34.2))]
    plan = plan_of(fleet(*nodes), replace(query(prompt_tokens=1400), longest_ms=1.0))
    assert (plan.first.node.announcement.name, plan.pick) == ("n2", Pick.CROWDED)


LOW = Power(on_battery=True, battery_share=0.19)


def test_a_node_below_its_floor_takes_only_what_nobody_else_may() -> None:
    low, other = priced("low", LOW, floor=0.2), priced("other", cost=5.0)
    plan = plan_of(fleet(low, other))
    assert [c.node.announcement.name for c in plan.choices] == ["other"]
    assert plan.removed == {Filter.BATTERY: 1}
    for charged in (
        Power(on_battery=True, battery_share=0.2),
        Power(on_battery=False, battery_share=0.1),
        Power(on_battery=True),
        None,
    ):
        assert plan_of(fleet(priced("low", charged, floor=0.2), other)).first.cost_per_mtoken == 0.0
    for gone in (fleet(low), fleet(low, priced("other", health=Health.SUSPECT))):
        alone = plan_of(gone)
        assert alone.first.node.announcement.name == "low"
        assert "on battery, 19 % left, below its floor" in why(alone)
    after = plan_of(fleet(low, other), query(excluded=frozenset({"id-other"})))
    assert after.first.node.announcement.name == "low"


def test_a_snapshot_follows_a_battery_over_its_floor() -> None:
    snapshot = fleet(priced("low", LOW, floor=0.2), priced("other", floor=0.2))
    charged = snapshot.with_changes([priced("low", Power(True, 0.3), floor=0.2)])
    assert len(pools(charged, query())[0][0].nodes) == 2
    assert pools(charged.with_changes([priced("low", LOW, floor=0.2)]), query())[1] == {Filter.BATTERY: 1}


def test_in_a_large_fleet_idle_savers_are_not_drawn() -> None:
    """They take no work, so they would look least loaded of all."""
    busy = NodeLoad(running=3)
    savers = [priced(f"s{i}", LOW, floor=0.2) for i in range(3 * SCAN_LIMIT)]
    others = [replace(priced(f"o{i}", floor=0.2), load=busy) for i in range(2 * SCAN_LIMIT)]
    plan = route(fleet(*savers, *others), query(), MODEL, Random(1).random)
    assert isinstance(plan, Plan)
    assert all(c.node.announcement.name.startswith("o") for c in plan.choices)


def test_reasons_name_what_comes_on_top() -> None:
    plan = plan_of(fleet(priced("a", Power(work_w=36.0, metered=True), cost=0.5)))
    (candidate,) = explanation(plan).candidates
    assert candidate.energy_per_mtoken > 0.0
    assert candidate.link_per_mtoken > 0.0
    on_top = candidate.energy_per_mtoken + candidate.link_per_mtoken
    assert candidate.cost_per_mtoken == pytest.approx(0.5 + on_top)
    assert "(of it energy " in why(plan)
    assert ", metered link " in why(plan)
    assert record(plan)["candidates"][0]["extra_cost"] == [  # type: ignore[index]
        pytest.approx(candidate.energy_per_mtoken, abs=1e-6),
        pytest.approx(candidate.link_per_mtoken, abs=1e-6),
    ]
