"""Which candidates of a large fleet are looked at closely.

Predicting every node of thousands takes longer than the decision is worth. Of each sort (tier, cost and
variants, in which nodes are unlike) some are drawn at random and the least loaded of them are scored: the
power of a few choices, which also keeps replicas with the same stale view apart. Who holds most of the
prompt's prefix, and where the session's last turn ran, is always looked at. Where no drawn node has a free
slot, more are drawn. The cost of it does not grow with the fleet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from operator import attrgetter

from tidegate.routing.domain import NodeState, RouteQuery, Snapshot
from tidegate.routing.filters import Eligible, Pool

# Up to here everybody is scored.
SCAN_LIMIT = 64
SCORED = 4
LOOKS = 8
MORE_LOOKS = 48
MAX_SORTS = 4
MAX_HOLDERS = 2

Random = Callable[[], float]
_busy = attrgetter("busy")


def size(pools: Sequence[Pool]) -> int:
    """Candidates, those already tried included."""
    candidates = 0
    for pool in pools:
        candidates += pool.nodes.size * len(pool.variants)
    return candidates


def sample(
    snapshot: Snapshot, pools: Sequence[Pool], query: RouteQuery, rng: Random, *, thorough: bool = False
) -> list[Eligible]:
    """A few candidates, nobody twice. `thorough` looks at more of each sort."""
    chosen: dict[int, tuple[NodeState, Pool]] = {}
    for pair in _warm(snapshot, pools, query, rng):
        chosen[id(pair[0])] = pair
    sorts = _sorts(pools, rng)
    each = max(2, SCORED // len(sorts)) * (4 if thorough else 1)
    for members in sorts:
        drawn = _least_loaded(members, query.excluded, rng, MORE_LOOKS if thorough else LOOKS, each)
        if drawn and not thorough and drawn[0][0].busy >= 1.0:
            drawn = _least_loaded(members, query.excluded, rng, MORE_LOOKS, each)
        for pair in drawn:
            chosen[id(pair[0])] = pair
    # The constructor of a named tuple costs twice as much.
    new = tuple.__new__
    return [new(Eligible, (node, variant)) for node, pool in chosen.values() for variant in pool.variants]


def _least_loaded(
    members: Sequence[Pool], excluded: frozenset[str], rng: Random, looks: int, take: int
) -> list[tuple[NodeState, Pool]]:
    """The `take` least loaded of `looks` drawn, who were not tried already."""
    total = sum([pool.nodes.size for pool in members])
    start, step, count = int(rng() * total), int(rng() * total) | 1, looks if looks < total else total
    if len(members) == 1:
        pool = members[0]
        nodes = pool.nodes.spaced(start, step, count)
        if excluded:
            nodes = [node for node in nodes if node.announcement.node_id not in excluded]
        nodes.sort(key=_busy)
        return [(node, pool) for node in nodes[:take]]
    ends = list(accumulate(pool.nodes.size for pool in members))
    found = []
    for place in range(start, start + step * count, step):
        pool = members[which := bisect_right(ends, at := place % total)]
        node = pool.nodes[at - ends[which]]
        if node.announcement.node_id not in excluded:
            found.append((node, pool))
    found.sort(key=lambda pair: pair[0].busy)
    return found[:take]


def _sorts(pools: Sequence[Pool], rng: Random) -> list[list[Pool]]:
    """Pools of the same tier, cost and variants together; of many the two cheapest and two by chance."""
    if len(pools) <= MAX_SORTS and len({p.kind.binding.cost_per_mtoken for p in pools}) == len(pools):
        return [[pool] for pool in pools]  # unlike by their costs alone
    sorts: dict[object, list[Pool]] = {}
    for pool in pools:
        binding = pool.nodes[0].binding
        sort = (binding.cost_per_mtoken, binding.tier, *(v.digest for v in pool.variants))
        sorts.setdefault(sort, []).append(pool)
    if len(sorts) <= MAX_SORTS:
        return list(sorts.values())
    by_cost = sorted(sorts.values(), key=lambda members: members[0].nodes[0].binding.cost_per_mtoken)
    cheapest, rest = by_cost[: MAX_SORTS // 2], by_cost[MAX_SORTS // 2 :]
    start = int(rng() * len(rest))
    return cheapest + [rest[(start + n) % len(rest)] for n in range(min(MAX_SORTS // 2, len(rest)))]


def _warm(
    snapshot: Snapshot, pools: Sequence[Pool], query: RouteQuery, rng: Random
) -> Iterator[tuple[NodeState, Pool]]:
    """Where the session was, and of those that hold most of the prefix the less loaded of two."""
    if query.session is not None:
        yield from _pooled(snapshot, pools, query, query.session.node_id)
    hashes = query.analysis.prefix_hashes
    if not hashes or not snapshot.holders:
        return
    holding = snapshot.holders.deepest(hashes)
    start = int(rng() * len(holding))
    for number in range(min(len(holding), MAX_HOLDERS)):
        yield from _pooled(snapshot, pools, query, holding[(start + number) % len(holding)])


def _pooled(
    snapshot: Snapshot, pools: Sequence[Pool], query: RouteQuery, node_id: str
) -> Iterator[tuple[NodeState, Pool]]:
    """The node with its pool, if it passed the filters."""
    if node_id in query.excluded:
        return
    node = snapshot.get(node_id)
    pool = None if node is None else next((p for p in pools if p.has(node)), None)
    if node is not None and pool is not None:
        yield node, pool
