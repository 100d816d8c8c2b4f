"""Filter, score, pick: what goes first, what is refused, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_fixtures import LARGE, RESTRICTED, SMALL, always, cloud, fleet, node, query

from tidegate.routing.domain import (
    Budget,
    Code,
    Health,
    InFlight,
    Kind,
    NodeLoad,
    NodeState,
    OnMiss,
    Placement,
    RouteQuery,
    SessionHint,
    Snapshot,
)
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.plan import MAX_CANDIDATES, Pick, Plan, Reason, Refusal
from tidegate.routing.policy import route
from tidegate.routing.refusing import RETRY_UNHEALTHY_MS

MODEL = LearnedLatency()
SHOP = frozenset({"shop"})
BUSY = NodeLoad(running=4, queued=6, pending_prefill_tokens=1500, pending_decode_tokens=900)


def plan_of(snapshot: Snapshot, asked: RouteQuery, chance: float = 0.0) -> Plan:
    decision = route(snapshot, asked, MODEL, always(chance))
    assert isinstance(decision, Plan), decision
    return decision


def refusal_of(snapshot: Snapshot, asked: RouteQuery) -> Refusal:
    decision = route(snapshot, asked, MODEL, always(0.0))
    assert isinstance(decision, Refusal), decision
    return decision


def first_name(plan: Plan) -> str:
    return plan.first.node.announcement.name


TIGHT = Budget(ttft_ms=900.0)


@pytest.mark.parametrize(
    ("snapshot", "asked", "expected", "pick", "at_risk"),
    [
        pytest.param(fleet(node(), cloud()), query(), "edge-0", Pick.CHEAPEST, False, id="cheapest"),
        pytest.param(
            fleet(node(), cloud()),
            query(budget=TIGHT),
            "edge-0",
            Pick.CHEAPEST,
            False,
            id="budget met by both",
        ),
        pytest.param(
            fleet(node(load=BUSY), cloud()),
            query(budget=TIGHT),
            "cloud-0",
            Pick.ONLY,
            False,
            id="edge too busy",
        ),
        pytest.param(
            fleet(node(), cloud()),
            query(min_p_good=0.9),
            "cloud-0",
            Pick.ONLY,
            False,
            id="quality needs the large",
        ),
        pytest.param(
            fleet(node(), cloud()),
            query(min_p_good=0.9, difficulty=0.1),
            "edge-0",
            Pick.CHEAPEST,
            False,
            id="easy prompt stays small",
        ),
        pytest.param(
            fleet(node(load=BUSY), node("edge-1")),
            query(),
            "edge-1",
            Pick.FASTEST,
            False,
            id="same cost: faster",
        ),
        pytest.param(
            fleet(node(), cloud()),
            query(budget=Budget(ttft_ms=1.0)),
            "cloud-0",
            Pick.BEST_ODDS,
            True,
            id="hopeless",
        ),
        pytest.param(
            fleet(node(), cloud(variants=(SMALL,))),
            query(min_p_good=0.99, difficulty=0.9),
            "edge-0",
            Pick.BEST_QUALITY,
            True,
            id="nobody good enough",
        ),
        pytest.param(
            fleet(node(), cloud()),
            query(min_p_good=0.9, budget=Budget(ttft_ms=1.0)),
            "cloud-0",
            Pick.BEST_ODDS,
            True,
            id="late beats wrong",
        ),
    ],
)
def test_who_goes_first(
    snapshot: Snapshot, asked: RouteQuery, expected: str, pick: Pick, at_risk: bool
) -> None:
    plan = plan_of(snapshot, asked)
    assert (first_name(plan), plan.pick, plan.at_risk) == (expected, pick, at_risk)
    assert plan.first.route().at_risk is at_risk


def test_a_prompt_is_judged_only_where_something_depends_on_it() -> None:
    judged: list[int] = []

    def difficulty() -> float:
        judged.append(1)
        return 0.5

    asked = query(budget=Budget(ttft_ms=300.0))
    asked = replace(asked, analysis=replace(asked.analysis, difficulty_of=difficulty))
    snapshot = fleet(node("a"), node("b"), cloud("c"))
    plan = plan_of(snapshot, asked)
    assert not judged
    assert plan.first.p_good > 0.0
    assert judged
    judged.clear()
    plan_of(snapshot, replace(asked, min_p_good=0.1))
    assert judged


def test_latency_routing_does_not_prefer_the_slow_node() -> None:
    slow = node("slow", speeds=replace(node().speeds, prefill_tokens_per_s=70.0))
    assert first_name(plan_of(fleet(slow, node("fast")), query(budget=TIGHT))) == "fast"
    assert first_name(plan_of(fleet(slow), query(budget=TIGHT))) == "slow"  # control: it can be chosen


def test_a_session_follows_its_warm_prefix_until_load_costs_more_than_it_saves() -> None:
    hint = SessionHint("id-edge-1", SMALL.digest, 900)
    asked = query(prompt_tokens=1000, session=hint, budget=Budget(ttft_ms=5000.0))
    idle = [node(f"edge-{i}") for i in range(3)]
    assert first_name(plan_of(fleet(*idle), asked)) == "edge-1"
    assert plan_of(fleet(*idle), asked).first.prediction.cached_tokens == 900
    loaded = fleet(idle[0], node("edge-1", load=BUSY), idle[2])
    assert first_name(plan_of(loaded, asked)) != "edge-1"


def test_near_tie_goes_to_the_warm_one() -> None:
    hint = SessionHint("id-edge-1", SMALL.digest, 70)
    asked = query(prompt_tokens=900, session=hint)
    nodes = [node(f"edge-{i}", rtt_ms=0.0) for i in range(2)]
    for chance in (0.0, 0.999):
        plan = plan_of(fleet(*nodes), asked, chance)
        assert (first_name(plan), plan.pick) == ("edge-1", Pick.WARM)


def test_near_ties_spread_by_chance_and_free_slots() -> None:
    half_full = node(
        "edge-1", in_flight=InFlight(requests=2), speeds=replace(node().speeds, decode=((1, 1e9),))
    )
    idle = node("edge-0", speeds=half_full.announcement.speeds)
    picks = Counter(first_name(plan_of(fleet(idle, half_full), query(), i / 800)) for i in range(800))
    assert picks == {"edge-0": 500, "edge-1": 300}  # weights 4 + 1 and 2 + 1


def test_replicas_with_the_same_stale_view_do_not_all_run_to_one_node() -> None:
    snapshot = fleet(*(node(f"edge-{i}") for i in range(8)))
    picks = Counter(first_name(plan_of(snapshot, query(budget=TIGHT), (i + 0.5) / 80)) for i in range(80))
    assert set(picks.values()) == {10}


@pytest.mark.parametrize(
    ("there", "left", "asked", "reason"),
    [
        (node(), cloud(), query(placement=Placement.CLOUD), Reason.NOT_PERMITTED),
        (cloud(), node(), query(rule=RESTRICTED), Reason.DATA_CLASS),
        (node(), cloud(variants=(replace(SMALL, model="large"),)), query(model="large"), Reason.ALL_LEFT),
        (None, node(), query(), Reason.ALL_LEFT),
    ],
)
def test_what_only_those_could_answer_that_left_a_moment_ago_may_pass(
    there: NodeState | None, left: NodeState, asked: RouteQuery, reason: Reason
) -> None:
    kind = Kind(left.announcement.variants, left.binding)
    nodes = () if there is None else (there,)
    refusal = refusal_of(Snapshot(nodes, departed=[kind]), asked)
    assert (refusal.reason, refusal.code) == (reason, Code.UNAVAILABLE)
    assert refusal.retry_after_ms
    # The control: without it the very same is refused for good, or as nobody's.
    assert refusal_of(Snapshot(nodes), asked).reason is not Reason.ALL_LEFT
    # Whoever could never have taken it does not count.
    far = Kind(left.announcement.variants, replace(left.binding, tenants=frozenset({"other"})))
    assert refusal_of(Snapshot(nodes, departed=[far]), asked) == refusal_of(Snapshot(nodes), asked)


@pytest.mark.parametrize(
    ("nodes", "asked", "reason", "code", "retry"),
    [
        ((), query(), Reason.NO_NODE, Code.UNAVAILABLE, True),
        ((node(),), query(model="gpt"), Reason.MODEL_UNKNOWN, Code.NOT_FOUND, False),
        ((cloud(),), query(rule=RESTRICTED), Reason.DATA_CLASS, Code.FAILED_PRECONDITION, False),
        (
            (node(health=Health.SUSPECT), cloud()),
            query(rule=RESTRICTED),
            Reason.DATA_CLASS,
            Code.UNAVAILABLE,
            True,
        ),
        ((node(tenants=SHOP),), query(), Reason.NOT_PERMITTED, Code.FAILED_PRECONDITION, False),
        (
            (node(tenants=SHOP), node("b", health=Health.SUSPECT)),
            query(),
            Reason.ALL_UNHEALTHY,
            Code.UNAVAILABLE,
            True,
        ),
        ((node(),), query(placement=Placement.CLOUD), Reason.NOT_PERMITTED, Code.FAILED_PRECONDITION, False),
        ((node(), cloud()), query(prompt_tokens=9000), Reason.CONTEXT_LENGTH, Code.INVALID_ARGUMENT, False),
        ((node(),), query(needs=frozenset({"tools"})), Reason.CAPABILITY, Code.FAILED_PRECONDITION, False),
        ((node(linked=False),), query(), Reason.NOT_LINKED, Code.UNAVAILABLE, True),
        ((node(health=Health.STALLED),), query(), Reason.ALL_UNHEALTHY, Code.UNAVAILABLE, True),
        ((node(health=Health.DRAINING),), query(), Reason.ALL_DRAINING, Code.UNAVAILABLE, True),
        ((node(),), query(excluded=frozenset({"id-edge-0"})), Reason.ALL_TRIED, Code.UNAVAILABLE, True),
    ],
)
def test_why_nobody_can_take_it(
    nodes: tuple[NodeState, ...], asked: RouteQuery, reason: Reason, code: Code, retry: bool
) -> None:
    refusal = refusal_of(fleet(*nodes), asked)
    assert (refusal.reason, refusal.code) == (reason, code)
    assert refusal.retry_after_ms == (RETRY_UNHEALTHY_MS if retry else None)


@pytest.mark.parametrize(
    "budget", [Budget(ttft_ms=50.0), Budget(ttft_ms=50.0, tpot_ms=1.0), Budget(total_ms=100.0)]
)
def test_reject_names_a_budget_that_flips_to_an_answer(budget: Budget) -> None:
    snapshot = fleet(node(), cloud())
    asked = query(budget=budget, on_miss=OnMiss.REJECT)
    refusal = refusal_of(snapshot, asked)
    assert (refusal.reason, refusal.code) == (Reason.BUDGET_UNMEETABLE, Code.RESOURCE_EXHAUSTED)
    assert refusal.best_ttft_ms == min(c.prediction.ttft_ms for c in refusal.choices)
    assert refusal.retry_after_ms is None  # idle nodes: waiting does not help
    assert refusal.meetable is not None
    plan = plan_of(snapshot, replace(asked, budget=refusal.meetable))
    assert not plan.at_risk


def test_reject_under_load_says_when_to_come_back() -> None:
    asked = query(budget=TIGHT, on_miss=OnMiss.REJECT)
    refusal = refusal_of(fleet(node(load=BUSY)), asked)
    queue_ms = refusal.choices[0].prediction.queue_ms
    assert refusal.retry_after_ms == pytest.approx(queue_ms)
    assert not plan_of(fleet(node()), asked).at_risk  # with the queue gone it is taken


def test_reject_for_quality() -> None:
    asked = query(min_p_good=0.999, difficulty=0.9, on_miss=OnMiss.REJECT)
    refusal = refusal_of(fleet(node(), cloud()), asked)
    assert (refusal.reason, refusal.retry_after_ms) == (Reason.QUALITY_UNMEETABLE, None)


def test_time_already_spent_counts_against_the_budget() -> None:
    snapshot = fleet(node(), cloud())
    assert first_name(plan_of(snapshot, query(budget=Budget(ttft_ms=600.0)))) == "edge-0"
    assert first_name(plan_of(snapshot, query(budget=Budget(ttft_ms=600.0), elapsed_ms=300.0))) == "cloud-0"


def test_fallbacks_are_the_rest_qualified_first_and_bounded() -> None:
    plan = plan_of(fleet(node(load=BUSY), cloud("cloud-0"), node("edge-1")), query(budget=TIGHT))
    assert [c.node.announcement.name for c in plan.choices] == ["edge-1", "cloud-0", "edge-0"]
    assert [c.qualified for c in plan.choices] == [True, True, False]
    many = plan_of(fleet(*(node(f"edge-{i}") for i in range(40))), query(), 0.99)
    assert (len(many.choices), many.considered) == (MAX_CANDIDATES, 40)
    assert len({c.node.node_id for c in many.choices}) == MAX_CANDIDATES


_fleets = st.lists(
    st.builds(
        lambda i, far, running, pending, cost, rtt: (cloud if far else node)(
            f"n{i}",
            load=NodeLoad(running=running, pending_prefill_tokens=pending, pending_decode_tokens=pending),
            cost=cost,
            rtt_ms=rtt,
        ),
        st.integers(0, 10_000),
        st.booleans(),
        st.integers(0, 12),
        st.integers(0, 3000),
        st.sampled_from([0.0, 0.1, 0.6]),
        st.floats(0, 300),
    ),
    min_size=1,
    max_size=10,
    unique_by=lambda n: n.node_id,
)


@given(
    _fleets,
    st.one_of(st.none(), st.floats(1, 5000)),
    st.one_of(st.none(), st.floats(1, 50_000)),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.5, 0.99),
    st.floats(0, 0.999),
)
def test_whoever_is_picked_qualifies_if_anybody_does_and_none_is_cheaper(
    nodes: list[NodeState],
    ttft: float | None,
    total: float | None,
    difficulty: float,
    min_p_good: float,
    target: float,
    chance: float,
) -> None:
    budget = Budget(ttft_ms=ttft, total_ms=total)
    asked = query(difficulty=difficulty, min_p_good=min_p_good, target=target, budget=budget)
    plan = plan_of(fleet(*nodes), asked, chance)
    assert len(plan.choices) == len(nodes)
    qualified = [c for c in plan.choices if c.qualified]
    for choice in plan.choices:
        assert choice.qualified == (choice.p_meet >= target and choice.p_good >= min_p_good)
    if qualified:
        assert plan.first.qualified
        assert plan.first.cost_per_mtoken == min(c.cost_per_mtoken for c in qualified)
    else:
        assert plan.at_risk
        reaching = [c for c in plan.choices if c.p_good >= min_p_good]
        assert not reaching or plan.first in reaching
        strict = replace(asked, on_miss=OnMiss.REJECT)
        assert refusal_of(fleet(*nodes), strict).code in (Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION)


def test_a_route_carries_what_was_predicted() -> None:
    choice = plan_of(fleet(cloud()), query(budget=TIGHT)).first
    made = choice.route("because", judged=True)
    assert (made.node_id, made.tier, made.variant_digest) == ("id-cloud-0", "cloud", LARGE.digest)
    assert made.predicted_ttft_ms == choice.prediction.ttft_ms
    assert (made.p_meet, made.p_good, made.why) == (choice.p_meet, choice.p_good, "because")
    assert choice.route().p_good is None


def test_a_cold_prompt_goes_where_the_cache_loses_least() -> None:
    """Alike but for the cache: 264 tokens fit beside what one of them holds."""
    full = [node(f"full-{n}", load=NodeLoad(free_cache_tokens=100)) for n in range(5)]
    roomy = node("roomy", load=NodeLoad(free_cache_tokens=4000))
    snapshot = fleet(*full, roomy)
    assert {first_name(plan_of(snapshot, query(), chance / 10)) for chance in range(10)} == {"roomy"}
    none = {first_name(plan_of(fleet(*full), query(), chance / 10)) for chance in range(10)}
    assert len(none) > 1  # the control: without such a node, by chance as ever


def test_a_warm_prefix_is_worth_a_queue_of_three_times_what_it_saves_and_no_more() -> None:
    """What a prompt computes anew counts once for itself and twice for those after it. A prefix is copied to
    another node only where load demands it: sticking to it whatever the load is the trap.
    """
    held = frozenset({b"a" * 16, b"b" * 16, b"c" * 16})
    asked = query(prompt_tokens=500, hashes=tuple(sorted(held)), budget=Budget(ttft_ms=60_000.0))

    def chosen(pending_tokens: int) -> str:
        load = NodeLoad(running=1, pending_prefill_tokens=pending_tokens)
        return first_name(plan_of(fleet(node("warm", load=load, blocks=held), node("cold")), asked))

    # 384 of 500 tokens are warm.
    assert chosen(0) == chosen(500) == chosen(1000) == "warm"
    assert chosen(2000) == chosen(8000) == "cold"
