"""Nodes that run fewer sequences at once than they announced."""

from __future__ import annotations

import pytest
from routing_fixtures import SMALL, always, fleet, node, query

from tidegate.routing.admission import has_room
from tidegate.routing.domain import NodeLoad, NodeState
from tidegate.routing.herding import most_ahead
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.plan import Plan
from tidegate.routing.policy import route
from tidegate.wire.fleet import node_info


def state(running: int, usable: int = 0, name: str = "edge-0") -> NodeState:
    load = NodeLoad(running=running, pending_decode_tokens=64 * running, usable_slots=usable)
    return node(name, load=load)


def plan_of(*nodes: NodeState, chance: float = 0.0) -> Plan:
    plan = route(fleet(*nodes), query(), LearnedLatency(), always(chance))
    assert isinstance(plan, Plan)
    return plan


@pytest.mark.parametrize(
    ("running", "usable", "room"),
    [(3, 0, True), (4, 0, False), (1, 2, True), (2, 2, False), (4, 2, False), (3, 9, True), (4, 9, False)],
)
def test_room_is_what_the_node_says_now_and_never_more_than_announced(
    running: int, usable: int, room: bool
) -> None:
    (choice,) = plan_of(state(running, usable)).choices
    assert has_room(choice) == room


def test_of_two_nodes_the_one_with_a_free_slot_is_taken() -> None:
    shrunk, whole = state(1, 1, "shrunk"), state(1, 4, "whole")
    for chance in (0.0, 0.5, 0.99):
        assert plan_of(shrunk, whole, chance=chance).first.node is whole
    # Without what it says, chance decides.
    same = {plan_of(state(1, 0, "a"), state(1, 0, "b"), chance=c).first.node.node_id for c in (0.0, 0.99)}
    assert len(same) == 2


def test_who_has_to_wait_for_a_slot_is_told_so() -> None:
    model = LearnedLatency()
    free, waits = (model.predict(state(2, usable), SMALL, query()) for usable in (4, 2))
    assert free.queue_ms == 0.0 < waits.queue_ms


def test_who_runs_more_than_it_may_is_full_and_known_as_it_is() -> None:
    model = LearnedLatency()
    over, at = (model.predict(state(running, 2), SMALL, query()) for running in (4, 2))
    assert over.queue_ms > at.queue_ms
    assert node_info(state(4, 2)).slots == 2
    assert most_ahead(plan_of(state(4, 2), state(4, 2, "b"))) == 4
