"""Several gateways with stale views, and requests that are sent to learn something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from routing_fixtures import always, cloud, fleet, node, query

from tidegate.routing.domain import Budget, InFlight, NodeLoad, SessionHint
from tidegate.routing.exploring import EXPLORED_SHARE, explored
from tidegate.routing.herding import most_ahead
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.plan import Pick, Plan
from tidegate.routing.policy import route

NODES, SLOTS, REPLICAS, VIEW_S, SERVICE_S = 8, 4, 4, 1.0, 1.0


def planned(
    *nodes: object, chance: float = 0.0, budget: Budget | None = None, session: SessionHint | None = None
) -> Plan:
    asked = query(budget=budget, session=session)
    plan = route(fleet(*nodes), asked, LearnedLatency(), always(chance))  # type: ignore[arg-type]
    assert isinstance(plan, Plan)
    return plan


def deepest_pile(bounces: bool, rng: Callable[[], float]) -> tuple[int, int]:
    """Four replicas send 24 requests a second to eight nodes of four slots, each knowing the others' work
    only as of the last second; the most sequences one node ever has, and bounces."""
    model, pile, most, bounced = LearnedLatency(), [0] * NODES, 0, 0
    ends: list[tuple[float, int]] = []
    views = [[0] * NODES for _ in range(REPLICAS)]
    own = [[0] * NODES for _ in range(REPLICAS)]
    for tick in range(24 * 20):
        now_s = tick / 24
        for end_s, at in [e for e in ends if e[0] <= now_s]:
            ends.remove((end_s, at))
            pile[at] -= 1
        replica = int(rng() * REPLICAS)
        if tick % 24 == 0:
            views, own = [list(pile) for _ in range(REPLICAS)], [[0] * NODES for _ in range(REPLICAS)]
        excluded: frozenset[str] = frozenset()
        for attempt in range(3):
            states = [
                node(
                    f"n{i}",
                    slots=SLOTS,
                    load=NodeLoad(min(seen, SLOTS), max(seen - SLOTS, 0), 0, 60 * seen),
                    in_flight=InFlight(mine, 0, 60 * mine),
                )
                for i, (seen, mine) in enumerate(zip(views[replica], own[replica], strict=True))
            ]
            plan = route(fleet(*states), replace(query(), excluded=excluded), model, rng)
            assert isinstance(plan, Plan)
            at = states.index(plan.first.node)
            limit = most_ahead(plan) if attempt < 2 else None
            if bounces and limit is not None and pile[at] >= SLOTS and pile[at] > limit:
                views[replica][at] = pile[at]
                excluded |= {plan.first.node.node_id}
                bounced += 1
                continue
            break
        own[replica][at] += 1
        pile[at] += 1
        most = max(most, pile[at])
        ends.append((now_s + SERVICE_S * max(1.0, pile[at] / SLOTS), at))
    return most, bounced


def test_stale_views_do_not_stampede() -> None:
    with_bounces, bounced = deepest_pile(True, Random(1).random)
    without, _ = deepest_pile(False, Random(1).random)
    assert with_bounces <= 2 * SLOTS
    assert without > 3 * SLOTS  # control: chance alone
    assert bounced < 24 * 20 / 4


def test_a_work_says_what_its_sender_believes_to_be_there() -> None:
    busy = NodeLoad(running=4, queued=3, pending_decode_tokens=400)
    believed = [most_ahead(planned(node(load=load), node("b", load=load))) for load in (NodeLoad(), busy)]
    assert believed == [5, 8]
    sent = node(load=busy, in_flight=InFlight(2, 100, 100))
    assert most_ahead(planned(sent, node("b", load=busy, in_flight=InFlight(2, 100, 100)))) == 10


def test_nobody_bounces_what_has_nowhere_else_to_go() -> None:
    assert most_ahead(planned(node())) is None
    tight = Budget(ttft_ms=600.0)
    assert most_ahead(planned(node(), cloud(rtt_ms=5000.0), budget=tight)) is None


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0 - EXPLORED_SHARE - 1e-9])
def test_ninety_nine_of_a_hundred_requests_learn_nothing_on_purpose(chance: float) -> None:
    plan = planned(node(), node("b"))
    assert explored(plan, always(chance)) is plan


def test_the_hundredth_goes_to_another_node_that_would_do_as_well() -> None:
    slower = node("b", rtt_ms=80.0)
    plan = planned(node(), slower, cloud())
    assert plan.first.node.node_id == "id-edge-0"
    learning = explored(plan, always(0.9999))
    assert (learning.first.node, learning.pick) == (slower, Pick.EXPLORED)
    assert {c.node.node_id for c in learning.choices} == {c.node.node_id for c in plan.choices}


def test_a_warm_prefix_is_not_left_to_learn_something() -> None:
    warm = SessionHint("id-edge-0", node().announcement.variants[0].digest, 400)
    plan = replace(planned(node(), node("b"), session=warm), pick=Pick.FASTEST)
    assert plan.first.prediction.cached_tokens > 64
    assert explored(plan, always(0.9999)) is plan


def test_nothing_is_explored_outside_the_budget_or_at_a_higher_price() -> None:
    tight = Budget(ttft_ms=600.0)
    late = node("b", rtt_ms=2000.0)
    for plan in (planned(node(), late, budget=tight), planned(node(), cloud())):
        assert explored(plan, always(0.9999)) is plan
    at_risk = planned(late, node("c", rtt_ms=2000.0), budget=tight)
    assert explored(at_risk, always(0.9999)) is at_risk
