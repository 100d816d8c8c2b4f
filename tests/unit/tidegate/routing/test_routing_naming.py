"""Names of the operator: aliases, ordered fallbacks, canaries that keep their sessions, shadows."""

from __future__ import annotations

from dataclasses import replace

from routing_fixtures import LARGE, SMALL, always, cloud, fleet, node, query

from tidegate.routing.domain import Budget, Health, NodeState, OnMiss, RouteQuery
from tidegate.routing.explain import why
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.naming import ModelName, ModelNames, Portion, first_that_serves
from tidegate.routing.plan import Plan, Reason, Refusal
from tidegate.routing.policy import route

BIG = replace(LARGE, model="big", digest="d-big", aliases=())
TINY = replace(SMALL, model="tiny", digest="d-tiny", aliases=())
NAMES = ModelNames(
    [
        ModelName("assistant", ("big", "smol")),
        ModelName("trial", ("smol",), Portion("tiny", 0.2), Portion("big", 0.1)),
    ],
    {"helper": "assistant", "s": "smol"},
)


def decide(asked: str, *nodes: NodeState, who: str = "w", **changes: object) -> Plan | Refusal:
    resolved = NAMES.resolve(asked, who)
    base = replace(query(model=resolved.targets[0]), **changes)  # type: ignore[arg-type]

    def once(asked: RouteQuery) -> Plan | Refusal:
        return route(fleet(*nodes), asked, LearnedLatency(), always(0.0))

    return first_that_serves(resolved, base, once)


def model_of(plan: Plan | Refusal) -> str:
    assert isinstance(plan, Plan), plan
    return plan.first.variant.model


def test_what_names_stand_for() -> None:
    assert NAMES.resolve("", "w").targets == ("auto",)
    assert NAMES.resolve("smol", "w") == (("smol",), "", "", False, 0.0)
    assert NAMES.resolve("s", "w").targets == ("smol",)
    assert NAMES.resolve("helper", "w").targets == ("big", "smol")
    assert [n.name for n in NAMES.all] == ["assistant", "trial", "helper", "s"]


def test_the_next_model_serves_where_the_one_before_cannot() -> None:
    big, small = cloud(variants=(BIG,)), node(variants=(SMALL,))
    assert model_of(decide("assistant", big, small)) == "big"
    plan = decide("helper", replace(big, health=Health.SUSPECT), small)
    assert model_of(plan) == "smol"
    assert isinstance(plan, Plan)
    assert 'as fallback 1 of "helper"' in why(plan)


def test_a_model_that_would_miss_the_budget_gives_way_to_one_that_keeps_it() -> None:
    far = cloud(variants=(BIG,), rtt_ms=3000.0)
    tight = Budget(ttft_ms=900.0)
    assert model_of(decide("assistant", far, node(), budget=tight)) == "smol"
    assert model_of(decide("assistant", far, budget=tight)) == "big"  # at risk, rather than nobody
    refused = decide("assistant", far, budget=tight, on_miss=OnMiss.REJECT)
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.BUDGET_UNMEETABLE  # not MODEL_UNKNOWN, which says less


def test_a_canary_gets_its_share_and_keeps_its_sessions() -> None:
    picked = {f"s{n}": NAMES.resolve("trial", f"s{n}") for n in range(2000)}
    canaries = {who for who, resolved in picked.items() if resolved.is_canary}
    assert 320 <= len(canaries) <= 480
    assert all(NAMES.resolve("trial", who).is_canary for who in canaries)
    who = next(iter(canaries))
    nodes = (node("t", variants=(TINY,)), node("s", variants=(SMALL,)))
    plan = decide("trial", *nodes, who=who)
    assert model_of(plan) == "tiny"
    assert isinstance(plan, Plan)
    assert 'as canary of "trial"' in why(plan)
    assert model_of(decide("trial", nodes[1], who=who)) == "smol"


def test_a_session_keeps_its_side_of_a_canary_while_each_turn_is_drawn_for_a_shadow() -> None:
    turns = [[NAMES.resolve("trial", f"s{s}.r{n}", f"s{s}") for n in range(20)] for s in range(300)]
    assert all(len({turn.is_canary for turn in session}) == 1 for session in turns)
    copies = [sum(turn.shadow == "big" for turn in session) for session in turns]
    assert 500 <= sum(copies) <= 700
    # Drawn by the session, each would have none or all: of 20 independent draws none hit in 12 % of sessions.
    assert 0.05 <= sum(count == 0 for count in copies) / len(copies) <= 0.2
    assert max(copies) < 10


def test_shadows_are_drawn_apart_from_canaries() -> None:
    drawn = [NAMES.resolve("trial", f"s{n}") for n in range(4000)]
    shadowed = [r for r in drawn if r.shadow == "big"]
    assert 320 <= len(shadowed) <= 480
    assert 0.1 <= sum(r.is_canary for r in shadowed) / len(shadowed) <= 0.3
