"""Who waits for a node, and who goes elsewhere at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from routing_fixtures import SMALL, always, cloud, fleet, node, query

from tidegate.routing.admission import MAX_TRIES, AdmissionLimits, AdmissionQueue, lane_of, place
from tidegate.routing.domain import NodeLoad, Speeds
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.plan import Pick, Plan, Refusal
from tidegate.routing.policy import route
from tidegate.routing.waiting import Ticket

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


@pytest.mark.parametrize("lanes", [MAX_TRIES, 4 * MAX_TRIES])
def test_lanes_that_cannot_go_do_not_keep_back_one_that_can(lanes: int) -> None:
    """Models m0, m1, ... run on a node that is full, and somebody waits for each of them."""
    variants = tuple(replace(SMALL, model=f"m{n}", digest=f"d{n}") for n in range(lanes))
    full = node("full", variants=variants, load=FULL)
    queue, asked = AdmissionQueue(AdmissionLimits(), MODEL), {}
    for model in [v.model for v in variants] + ["other"]:
        other = node("idle", variants=(replace(SMALL, model="other", digest="other"),), load=FULL)
        plan = route(fleet(full, other), query(model=model), MODEL, always(0.0))
        assert isinstance(plan, Plan)
        ticket = queue.enter(plan, 100.0, 0.0)
        assert isinstance(ticket, Ticket)
        asked[ticket.number] = plan.query
        queue.push(ticket, 0.0)

    def now(ticket: Ticket) -> Plan | Refusal:
        return route(fleet(full, replace(other, load=NodeLoad())), asked[ticket.number], MODEL, always(0.0))

    granted = [g.ticket for _ in range(lanes) if (g := queue.next(0.1, now)) is not None]
    assert [asked[ticket.number].model for ticket in granted] == ["other"]


def test_requests_that_ask_for_nearly_the_same_quality_wait_in_one_lane() -> None:
    lanes = [lane_of(query(min_p_good=p)) for p in (0.801, 0.803, 0.9, 0.001, 0.0)]
    assert lanes[0] == lanes[1]
    assert len(set(lanes)) == 4


def test_lanes_are_tried_from_the_best_on_again_once_somebody_went() -> None:
    """Else a lane that comes late in the order would take what one before it has waited for."""
    models = [f"m{n}" for n in range(12)]
    full = [node(m, variants=(replace(SMALL, model=m, digest=m),), load=FULL) for m in models]
    queue, asked, tried = AdmissionQueue(AdmissionLimits(), MODEL), {}, list[str]()
    for model in models:
        plan = route(fleet(*full), query(model=model), MODEL, always(0.0))
        assert isinstance(plan, Plan)
        ticket = queue.enter(plan, 100.0, 0.0)
        assert isinstance(ticket, Ticket)
        asked[ticket.number] = plan.query
        queue.push(ticket, 0.0)

    def turn(idle: str = "") -> list[str]:
        nodes = [replace(n, load=NodeLoad()) if n.announcement.name == idle else n for n in full]

        def now(ticket: Ticket) -> Plan | Refusal:
            tried.append(asked[ticket.number].model)
            return route(fleet(*nodes), asked[ticket.number], MODEL, always(0.0))

        tried.clear()
        queue.next(0.1, now)
        return list(tried)

    assert turn() == models[:8]
    assert turn() == models[:4] + models[8:]
    assert turn("m0") == ["m0"]
    assert turn() == models[1:9]
