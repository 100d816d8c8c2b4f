"""Hard filters: a table of who falls where, and the one property that must never break."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_fixtures import LARGE, RESTRICTED, SMALL, always, cloud, fleet, node, query

from tidegate.routing.baselines import POLICY_NAMES, policy_named
from tidegate.routing.domain import Budget, ClassRule, Health, NodeLoad, OnMiss, Placement, Snapshot, Tier
from tidegate.routing.filters import Filter, apply_filters, in_class
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.plan import Plan


def _names(snapshot: Snapshot, asked: object) -> list[str]:
    return [e.node.announcement.name for e in apply_filters(snapshot, asked).eligible]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fell", "bad", "asked"),
    [
        (
            Filter.MODEL,
            node("bad", variants=(replace(SMALL, model="other", aliases=()),)),
            query(model="smol"),
        ),
        (Filter.DATA_CLASS, cloud("bad"), query(rule=RESTRICTED)),
        (Filter.DATA_CLASS, node("bad", trust="rented"), query(rule=RESTRICTED)),
        (Filter.DATA_CLASS, node("bad", region="far"), query(rule=ClassRule(regions=frozenset({"site-a"})))),
        (Filter.TENANT, node("bad", tenants=frozenset({"shop", "bank"})), query(tenant="default")),
        (Filter.PLACEMENT, cloud("bad"), query(placement=Placement.EDGE)),
        (
            Filter.CONTEXT,
            node("bad", variants=(replace(SMALL, context_tokens=512),)),
            query(prompt_tokens=500, max_tokens=13),
        ),
        (
            Filter.CAPABILITY,
            node("bad", variants=(replace(SMALL, capabilities=frozenset()),)),
            query(needs=frozenset({"token_ids"})),
        ),
        (Filter.NOT_LINKED, node("bad", linked=False), query()),
        (Filter.HEALTH, node("bad", health=Health.SUSPECT), query()),
        (Filter.HEALTH, node("bad", health=Health.STALLED), query()),
        (Filter.HEALTH, node("bad", load=NodeLoad(ready=False)), query()),
        (Filter.DRAINING, node("bad", health=Health.DRAINING), query()),
        (Filter.DRAINING, node("bad", load=NodeLoad(draining=True)), query()),
        (Filter.EXCLUDED, node("bad"), query(excluded=frozenset({"id-bad"}))),
    ],
)
def test_a_node_falls_at_its_filter_and_a_good_one_stays(fell: Filter, bad: object, asked: object) -> None:
    good = node("good")
    result = apply_filters(fleet(good, bad), asked)  # type: ignore[arg-type]
    assert [e.node.announcement.name for e in result.eligible] == ["good"]
    assert result.removed == {fell: 1}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("auto", ["edge-0", "cloud-0"]),
        ("smol", ["edge-0", "cloud-0"]),
        ("large", ["cloud-0"]),
        ("gone", []),
    ],
)
def test_model_names_aliases_and_auto(model: str, expected: list[str]) -> None:
    assert _names(fleet(node(), cloud()), query(model=model)) == expected


def test_context_exactly_full_fits() -> None:
    assert _names(fleet(node()), query(prompt_tokens=2000, max_tokens=48)) == ["edge-0"]
    assert _names(fleet(node()), query(prompt_tokens=2000, max_tokens=49)) == []


def test_a_node_with_two_variants_keeps_those_that_fit() -> None:
    both = node(variants=(SMALL, LARGE))
    eligible = apply_filters(fleet(both), query(prompt_tokens=4000)).eligible
    assert [e.variant for e in eligible] == [LARGE]
    assert apply_filters(fleet(both), query(prompt_tokens=9000)).removed == {Filter.CONTEXT: 1}


def test_each_node_counts_at_the_first_filter_only() -> None:
    troubled = cloud("c", health=Health.SUSPECT, linked=False)
    assert apply_filters(fleet(troubled), query(rule=RESTRICTED)).removed == {Filter.DATA_CLASS: 1}


_nodes = st.lists(
    st.builds(
        lambda i, tier, region, trust, health, running, cost: node(
            f"n{i}",
            tier=tier,
            region=region,
            trust=trust,
            health=health,
            load=NodeLoad(running=running),
            cost=cost,
        ),
        st.integers(0, 10_000),
        st.sampled_from(list(Tier)),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["own", "rented"]),
        st.sampled_from([Health.READY, Health.READY, Health.SUSPECT]),
        st.integers(0, 20),
        st.sampled_from([0.0, 0.6]),
    ),
    max_size=8,
    unique_by=lambda n: n.node_id,
)
_rules = st.builds(
    ClassRule,
    st.frozensets(st.sampled_from(["edge", "cloud"]), max_size=1),
    st.frozensets(st.sampled_from(["a", "b"]), max_size=1),
    st.frozensets(st.sampled_from(["own", "rented"]), max_size=1),
)


@given(
    _nodes,
    _rules,
    st.sampled_from(POLICY_NAMES),
    st.sampled_from(list(Placement)),
    st.sampled_from(list(OnMiss)),
    st.one_of(st.none(), st.floats(1, 1e5)),
    st.floats(0, 1),
    st.floats(0, 0.999),
)
def test_no_policy_ever_plans_a_node_outside_the_data_class(
    nodes: list[object],
    rule: ClassRule,
    name: str,
    placement: Placement,
    on_miss: OnMiss,
    ttft_ms: float | None,
    min_p_good: float,
    chance: float,
) -> None:
    asked = query(
        rule=rule,
        placement=placement,
        on_miss=on_miss,
        budget=Budget(ttft_ms=ttft_ms),
        min_p_good=min_p_good,
    )
    snapshot = fleet(*nodes)  # type: ignore[arg-type]
    decision = policy_named(name).route(snapshot, asked, LearnedLatency(), always(chance))
    assert all(in_class(c.node.binding, rule) for c in decision.choices)
    assert all(c.node.health is Health.READY for c in decision.choices)
    if isinstance(decision, Plan) and placement is not Placement.ANY:
        assert all(c.node.binding.tier == placement.value for c in decision.choices)


def test_positive_control_without_a_class_the_cloud_is_planned() -> None:
    decision = policy_named("tidegate").route(fleet(cloud()), query(), LearnedLatency(), always(0.0))
    assert isinstance(decision, Plan)
    assert not in_class(decision.first.node.binding, RESTRICTED)


def test_a_node_kept_for_tenants_works_for_them_and_an_open_one_for_all() -> None:
    snapshot = fleet(node("open"), node("kept", tenants=frozenset({"shop"})))
    assert _names(snapshot, query(tenant="shop")) == ["open", "kept"]
    assert _names(snapshot, query(tenant="other")) == ["open"]
