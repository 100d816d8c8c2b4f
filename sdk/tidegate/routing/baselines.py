"""The policies everyone compares with, under the same hard filters and the same seam.

They choose blindly with respect to the budget and never refuse for it; what they chose carries the same
predictions, so that a comparison shows what each knew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tidegate.routing.domain import NodeState, Placement, RouteQuery, Snapshot
from tidegate.routing.latency import LatencyModel
from tidegate.routing.plan import MAX_CANDIDATES, Choice, Pick, Plan, Refusal
from tidegate.routing.policy import Policy, Random, Tidegate, score
from tidegate.routing.quality import QualityModel
from tidegate.routing.refusing import no_candidate


def outstanding(node: NodeState) -> int:
    """Requests running, queued, or sent and not yet acknowledged."""
    return node.active


class LeastOutstanding:
    """Fewest running + queued requests; ties at random. `tier` keeps to one tier."""

    def __init__(self, name: str = "least-outstanding", tier: Placement = Placement.ANY) -> None:
        self._name = name
        self._tier = tier

    @property
    def name(self) -> str:
        return self._name

    def route(
        self,
        snapshot: Snapshot,
        query: RouteQuery,
        model: LatencyModel,
        rng: Random,
        quality: QualityModel | None = None,
    ) -> Plan | Refusal:
        # A placement the request asked for wins: a baseline must not break a promise either.
        if self._tier is not Placement.ANY and query.placement is Placement.ANY:
            query = replace(query, placement=self._tier)
        choices, removed = score(snapshot, query, model, quality)
        if not choices:
            return no_candidate(query, removed)
        fewest = min(outstanding(c.node) for c in choices)
        ties = [c for c in choices if outstanding(c.node) == fewest]
        chosen = ties[min(int(rng() * len(ties)), len(ties) - 1)]
        rest = sorted((c for c in choices if c is not chosen), key=lambda c: outstanding(c.node))
        return _plan(self._name, [chosen, *rest], query, removed)


class RoundRobin:
    """Nodes in turn, by node id, whatever their load. Holds its place: one instance per gateway."""

    name = "round-robin"

    def __init__(self) -> None:
        self._turn = 0

    def route(
        self,
        snapshot: Snapshot,
        query: RouteQuery,
        model: LatencyModel,
        rng: Random,
        quality: QualityModel | None = None,
    ) -> Plan | Refusal:
        choices, removed = score(snapshot, query, model, quality)
        if not choices:
            return no_candidate(query, removed)
        choices.sort(key=lambda c: (c.node.node_id, c.variant.digest))
        at = self._turn % len(choices)
        self._turn += 1
        return _plan(self.name, choices[at:] + choices[:at], query, removed)


def _plan(name: str, order: Sequence[Choice], query: RouteQuery, removed: dict[str, int]) -> Plan:
    kept = tuple(order[:MAX_CANDIDATES])
    return Plan(kept, query, Pick.BASELINE, removed, len(order), name)


_POLICIES: dict[str, Callable[[], Policy]] = {
    "tidegate": Tidegate,
    "round-robin": RoundRobin,
    "least-outstanding": LeastOutstanding,
    "always-edge": lambda: LeastOutstanding("always-edge", Placement.EDGE),
    "always-cloud": lambda: LeastOutstanding("always-cloud", Placement.CLOUD),
}

POLICY_NAMES: tuple[str, ...] = tuple(_POLICIES)


def policy_named(name: str) -> Policy:
    """A fresh policy. Raises ValueError for an unknown name, listing the known ones."""
    try:
        make = _POLICIES[name]
    except KeyError:
        raise ValueError(f"unknown policy {name!r}; known: {', '.join(POLICY_NAMES)}") from None
    return make()
