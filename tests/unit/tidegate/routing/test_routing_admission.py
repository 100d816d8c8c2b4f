"""Who waits for a node, and who goes elsewhere at once."""

from __future__ import annotations

from routing_fixtures import always, cloud, fleet, node, query

from tidegate.routing.admission import place
from tidegate.routing.domain import NodeLoad, Speeds
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.plan import Pick, Plan
from tidegate.routing.policy import route

MODEL = LearnedLatency()
FULL = NodeLoad(running=4)
QUICK = Speeds(7000.0, ((1, 1500.0), (4, 600.0)))


def placed(*nodes: object, wait_ms: float) -> Plan | None:
    plan = route(fleet(*nodes), query(), MODEL, always(0.0))  # type: ignore[arg-type]
    assert isinstance(plan, Plan)
    assert plan.first.node.announcement.name == "full"
    return place(plan, wait_ms, MODEL, 2000.0)


def test_nobody_waits_for_a_node_while_one_that_costs_the_same_is_done_sooner() -> None:
    full = node("full", speeds=QUICK, load=FULL, rtt_ms=0.0)
    plan = placed(full, node("free"), wait_ms=1900.0)
    assert plan is not None
    assert (plan.first.node.announcement.name, plan.pick) == ("free", Pick.HAS_ROOM)
    assert placed(full, node("free"), wait_ms=20.0) is None  # the fast one is worth so short a wait


def test_patience_is_for_cheaper_nodes() -> None:
    full = node("full", load=FULL)
    assert placed(full, cloud(), wait_ms=1900.0) is None
    assert placed(full, cloud(), wait_ms=2100.0) is not None
