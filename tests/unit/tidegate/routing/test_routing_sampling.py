"""Large fleets: few are looked at, the right ones among them, and the counts stay those of all."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from routing_fixtures import LARGE, SMALL, always, cloud, fleet, node, query

from tidegate.routing.domain import (
    Budget,
    Health,
    NodeLoad,
    NodeState,
    RouteQuery,
    SessionHint,
    Snapshot,
    Tier,
    Variant,
)
from tidegate.routing.filters import apply_filters
from tidegate.routing.latency import LatencyModel, LearnedLatency
from tidegate.routing.plan import Plan
from tidegate.routing.policy import route
from tidegate.routing.prediction import Prediction
from tidegate.routing.sampling import SCAN_LIMIT

BLOCKS = tuple(bytes([n]) * 16 for n in range(8))
FULL = NodeLoad(running=4, queued=2, pending_prefill_tokens=400, pending_decode_tokens=800)


class Counting:
    def __init__(self) -> None:
        self._learned = LearnedLatency()
        self.asked: list[str] = []

    def predict(self, node: NodeState, variant: Variant, query: RouteQuery) -> Prediction:
        self.asked.append(node.announcement.name)
        return self._learned.predict(node, variant, query)

    def p_meet(self, prediction: Prediction, budget: Budget, elapsed_ms: float) -> float:
        return self._learned.p_meet(prediction, budget, elapsed_ms)


def many(count: int, **changes: object) -> list[NodeState]:
    return [node(f"e{n}", **changes) for n in range(count)]  # type: ignore[arg-type]


def first_of(snapshot: Snapshot, asked: RouteQuery, model: LatencyModel, seed: int = 1) -> str:
    plan = route(snapshot, asked, model, random.Random(seed).random)
    assert isinstance(plan, Plan)
    return plan.first.node.announcement.name


def test_what_a_decision_looks_at_does_not_grow_with_the_fleet() -> None:
    asked = {}
    for size in (SCAN_LIMIT, 1000, 5000):
        model = Counting()
        first_of(fleet(*many(size), *[cloud(f"c{n}") for n in range(20)]), query(), model)
        asked[size] = len(model.asked)
    assert asked[1000] == asked[5000] < 12
    assert asked[SCAN_LIMIT] < 12  # with the cloud's twenty it is above the limit
    small = Counting()
    first_of(fleet(*many(SCAN_LIMIT)), query(), small)
    assert len(small.asked) == SCAN_LIMIT


def test_the_one_that_holds_the_prefix_is_found_among_thousands() -> None:
    nodes = many(2000)
    nodes[1234] = replace(nodes[1234], prefix_blocks=frozenset(BLOCKS))
    nodes[77] = replace(nodes[77], prefix_blocks=frozenset(BLOCKS[:2]))
    asked = query(prompt_tokens=1100, hashes=BLOCKS, budget=Budget(ttft_ms=900.0))
    for seed in range(5):
        assert first_of(fleet(*nodes), asked, LearnedLatency(), seed) == "e1234"
    # The control: nobody looks for it where the prompt has another beginning.
    other = replace(asked, analysis=replace(asked.analysis, prefix_hashes=(b"?" * 16, *BLOCKS[1:])))
    assert first_of(fleet(*nodes), other, LearnedLatency()) != "e1234"


def test_the_sessions_node_is_looked_at() -> None:
    hint = SessionHint("id-e500", SMALL.digest, 1000)
    model = Counting()
    first_of(fleet(*many(1000)), query(prompt_tokens=1100, session=hint), model)
    assert "e500" in model.asked


def test_every_sort_of_node_is_looked_at() -> None:
    model = Counting()
    clouds = [cloud(f"c{n}") for n in range(3)]
    first_of(fleet(*many(3000), *clouds), query(), model)
    assert {name[0] for name in model.asked} == {"e", "c"}


def test_a_free_node_among_full_ones_is_found() -> None:
    nodes = [*many(500, load=FULL), *[node(f"free{n}") for n in range(50)]]
    found = sum(first_of(fleet(*nodes), query(), LearnedLatency(), seed)[:4] == "free" for seed in range(20))
    assert found >= 18  # by eight looks alone it would be about ten


def test_loads_stay_even_where_blind_choice_does_not() -> None:
    rng, model = random.Random(3), LearnedLatency()
    snapshot, size = fleet(*many(200, slots=16)), 200
    blind: Counter[int] = Counter()
    for _ in range(4 * size):
        plan = route(snapshot, query(), model, rng.random)
        assert isinstance(plan, Plan)
        chosen = plan.first.node
        load = replace(chosen.load, running=chosen.load.running + 1)
        snapshot = snapshot.with_changes((replace(chosen, load=load),))
        blind[rng.randrange(size)] += 1
    assert max(n.load.running for n in snapshot.nodes) <= 7
    assert max(blind.values()) >= 9


def test_counts_are_those_of_all_and_who_was_tried_is_left_out() -> None:
    nodes = [*many(300), *[node(f"sick{n}", health=Health.SUSPECT) for n in range(7)], cloud("c0")]
    asked = query(model="smol", excluded=frozenset({"id-e5", "id-sick1"}), rule=None)
    plan = route(fleet(*nodes), asked, LearnedLatency(), always(0.0))
    assert isinstance(plan, Plan)
    assert plan.removed == {"health": 7, "excluded": 1}
    assert "e5" not in [c.node.announcement.name for c in plan.choices]


VARIANTS = st.sampled_from([(SMALL,), (LARGE,), (SMALL, LARGE)])
NODES = st.builds(
    lambda variants, health, running, edge: (variants, health, running, edge),
    VARIANTS,
    st.sampled_from([Health.READY, Health.READY, Health.DRAINING, Health.SUSPECT]),
    st.integers(0, 3),
    st.booleans(),
)


@given(st.lists(NODES, min_size=1, max_size=8), st.lists(st.tuples(st.integers(0, 7), NODES), max_size=6))
def test_a_changed_snapshot_is_the_one_made_anew(before: list, changes: list) -> None:  # type: ignore[type-arg]
    def made(index: int, what: tuple) -> NodeState:  # type: ignore[type-arg]
        variants, health, running, edge = what
        tier = Tier.EDGE if edge else Tier.CLOUD
        return node(f"n{index}", variants=variants, health=health, load=NodeLoad(running), tier=tier)

    nodes = [made(i, what) for i, what in enumerate(before)]
    snapshot = fleet(*nodes)
    for index, what in changes:
        at = index % len(nodes)
        nodes[at] = made(at, what)
        snapshot = snapshot.with_changes((nodes[at],))
    assert snapshot.nodes == tuple(nodes)
    assert snapshot.by_id == {n.node_id: n for n in nodes}
    assert all(snapshot.get(n.node_id) == n for n in nodes)
    new = fleet(*nodes)
    asked = query()
    assert Counter(e.node.node_id for e in apply_filters(snapshot, asked).eligible) == Counter(
        e.node.node_id for e in apply_filters(new, asked).eligible
    )
    assert apply_filters(snapshot, asked).removed == apply_filters(new, asked).removed


def hot_prefix(requests: int, *, sees_load: bool) -> list[str]:
    """Who gets requests with the same long beginning, faster than one node can serve them."""
    snapshot = fleet(node("warm", blocks=frozenset(BLOCKS)), *(node(f"cold{n}") for n in range(3)))
    model, rng = LearnedLatency(), random.Random(5)
    asked = query(prompt_tokens=1100, hashes=BLOCKS, budget=Budget(ttft_ms=2000.0))
    placed: list[str] = []
    for _ in range(requests):
        plan = route(snapshot, asked, model, rng.random)
        assert isinstance(plan, Plan)
        chosen, load = plan.first.node, plan.first.node.load
        placed.append(chosen.announcement.name)
        busy = replace(
            load,
            running=min(load.running + 1, 4),
            queued=max(load.running + load.queued + 1 - 4, 0),
            pending_prefill_tokens=load.pending_prefill_tokens + 1100 - plan.first.prediction.cached_tokens,
            pending_decode_tokens=load.pending_decode_tokens + 64,
        )
        # Whoever computed it once holds it, too.
        holding = replace(chosen, load=busy if sees_load else load, prefix_blocks=frozenset(BLOCKS))
        snapshot = snapshot.with_changes((holding,))
    return placed


def test_a_hot_prefix_sticks_only_as_long_as_its_node_keeps_up() -> None:
    placed = hot_prefix(24, sees_load=True)
    assert placed[:4] == ["warm"] * 4  # while it has room nobody else makes sense
    assert len(set(placed)) == 4
    assert max(Counter(placed).values()) <= 12


def test_control_without_load_the_hot_prefix_sticks_for_ever() -> None:
    assert hot_prefix(24, sees_load=False) == ["warm"] * 24
