"""Reasons become sentences only when asked, and carry what a user needs to act."""

from __future__ import annotations

import pytest
from routing_fixtures import LARGE, RESTRICTED, SMALL, always, cloud, fleet, node, query

from tidegate.routing.baselines import policy_named
from tidegate.routing.certificates import Basis, Certificate, Certified
from tidegate.routing.domain import Budget, Code, Health, NodeLoad, OnMiss, RouteQuery, SessionHint, Snapshot
from tidegate.routing.explain import explanation, refusal_error, refusal_explanation, refusal_message, why
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.plan import Plan, Reason, Refusal
from tidegate.routing.policy import route
from tidegate.routing.quality import CertifiedQuality, QualityModel

MODEL = LearnedLatency()


def plan_of(snapshot: Snapshot, asked: RouteQuery, quality: QualityModel | None = None) -> Plan:
    decision = route(snapshot, asked, MODEL, always(0.0), quality)
    assert isinstance(decision, Plan)
    return decision


def refusal_of(snapshot: Snapshot, asked: RouteQuery) -> Refusal:
    decision = route(snapshot, asked, MODEL, always(0.0))
    assert isinstance(decision, Refusal)
    return decision


@pytest.mark.parametrize(
    ("snapshot", "asked", "expected"),
    [
        (fleet(node()), query(), "only candidate that qualifies (edge)"),
        (fleet(node(), cloud()), query(), "cheapest that qualifies (edge)"),
        (fleet(node(), node("slow", rtt_ms=999.0)), query(), "fastest of its cost"),
        (fleet(node(), node("edge-1")), query(), "near-tie by free slots and chance"),
        (
            fleet(node(), node("edge-1")),
            query(prompt_tokens=900, session=SessionHint("id-edge-1", "d-small", 70)),
            "near-tie for its warm prefix",
        ),
        (
            fleet(node(), cloud()),
            query(budget=Budget(ttft_ms=1)),
            "at risk: none qualifies, best odds (cloud)",
        ),
        (fleet(node()), query(min_p_good=0.999), "at risk: none reaches the quality asked"),
    ],
)
def test_the_first_sentence(snapshot: Snapshot, asked: RouteQuery, expected: str) -> None:
    assert expected in why(plan_of(snapshot, asked))


def test_a_sentence_shows_its_numbers() -> None:
    hint = SessionHint("id-edge-0", "d-small", 150)
    asked = query(budget=Budget(ttft_ms=900), session=hint, min_p_good=0.2)
    text = why(plan_of(fleet(node()), asked))
    for part in (
        "TTFT 76 ms (queue 0, prefill 71, network 5)",
        "150 of 200 prompt tokens warm",
        "of 0.90",
        "of 0.20",
    ):
        assert part in text


@pytest.mark.parametrize(("difficulty", "certified"), [(0.3, True), (0.4, True), (0.5, False)])
def test_what_is_certified_for_a_prompt_is_told_of_each_candidate(difficulty: float, certified: bool) -> None:
    snapshot = fleet(node(), cloud())
    proven = Certified({SMALL.digest: Certificate(0.4, 0.02)}, Basis("model", LARGE.digest))
    asked = query(difficulty=difficulty)
    plan = plan_of(snapshot, asked, CertifiedQuality(snapshot, proven))
    told = {c.route.node_name: c.route for c in explanation(plan).candidates}
    assert {name: route.certified for name, route in told.items()} == {"edge-0": certified, "cloud-0": False}
    assert f"({'' if certified else 'not '}certified)" in told["edge-0"].why
    assert "(not certified)" in told["cloud-0"].why
    assert not plan_of(snapshot, asked).first.certified  # the control: ranks prove nothing


def test_an_explanation_lists_candidates_filters_and_analysis() -> None:
    snapshot = fleet(node(), cloud(), node("gone", health=Health.SUSPECT))
    told = explanation(plan_of(snapshot, query(difficulty=0.3)), decision_ms=0.1)
    assert [c.route.node_name for c in told.candidates] == ["edge-0", "cloud-0"]
    assert told.candidates[1].route.why.startswith("fallback 1: ")
    assert told.filtered == {"health": 1}
    assert (told.prompt_tokens, told.difficulty, told.decision_ms) == (200, 0.3, 0.1)


def test_a_budget_refusal_as_an_error_says_what_would_work() -> None:
    asked = query(budget=Budget(ttft_ms=100, tpot_ms=20, total_ms=300), on_miss=OnMiss.REJECT)
    refusal = refusal_of(fleet(node(), cloud(health=Health.SUSPECT)), asked)
    error = refusal_error(refusal)
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "BUDGET_UNMEETABLE")
    assert "best predicted TTFT 291 ms" in error.message
    assert "(1 not healthy)" in error.message
    assert error.details["filtered_health"] == "1"
    assert float(error.details["best_predicted_ttft_ms"]) == pytest.approx(290.7, abs=0.1)
    for part in ("ttft_ms", "tpot_ms", "total_ms"):
        assert float(error.details[f"meetable_{part}"]) > 0
    assert len(refusal_explanation(refusal).candidates) == 1


def test_a_data_class_refusal_names_the_class_and_the_counts() -> None:
    refusal = refusal_of(fleet(node(health=Health.NOT_READY), cloud()), query(rule=RESTRICTED))
    message = refusal_message(refusal)
    assert "data class" in message
    assert "1 not healthy" in message
    assert "1 outside the data class" in message


def test_a_quality_refusal_tells_the_best_there_is() -> None:
    asked = query(min_p_good=0.999, on_miss=OnMiss.REJECT)
    assert "asked 1.00" in refusal_message(refusal_of(fleet(node(), cloud()), asked))


def test_every_reason_has_its_sentence() -> None:
    for reason in Reason:
        assert refusal_message(Refusal(reason, Code.UNAVAILABLE, query()))


def test_a_baseline_says_its_name() -> None:
    plan = policy_named("always-cloud").route(fleet(cloud(load=NodeLoad())), query(), MODEL, always(0.0))
    assert isinstance(plan, Plan)
    assert why(plan).startswith("always-cloud (cloud): ")
