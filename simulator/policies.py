"""The policies of the comparison. They see the nodes as they are, not as a gateway sees them: a strong field.

Each gives a node for an arrival, or None where none may take it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from simulator.foresight import Foresight
from simulator.node import Node, Seq
from simulator.trace import Arrival
from tidegate.routing.domain import Tier

WARM_SHARE = 0.5
Make = Callable[[Node, Arrival], Seq]
Choose = Callable[[Arrival, Sequence[Node], float], Node]


def fitting(arrival: Arrival, nodes: Sequence[Node]) -> list[Node]:
    """Nodes that live and whose context is long enough, as every gateway filters."""
    tokens = arrival.prompt_tokens + arrival.max_tokens
    return [n for n in nodes if n.up and tokens <= n.spec.context_tokens]


def chooser(name: str, make: Make, delay_s: Callable[[Node, Arrival], float], rng: random.Random) -> Choose:
    """A fresh policy. `make` is the request as a node would have it, `delay_s` the way there.

    Raises KeyError for an unknown name.
    """
    turn = 0
    foresights: dict[int, Foresight] = {}

    def foresee(node: Node, arrival: Arrival, now_s: float, *, whole: bool) -> tuple[float, float]:
        """Seconds until the first token and the last one are there."""
        way_s, foresight = delay_s(node, arrival), foresights.get(node.index)
        if foresight is None:
            foresight = foresights[node.index] = Foresight(node)
        first_s, last_s = foresight.of(make(node, arrival), now_s + way_s, now_s, whole=whole)
        return first_s + way_s - now_s, last_s + way_s - now_s

    def placed(node: Node, arrival: Arrival, now_s: float) -> Node:
        foresights[node.index].add(make(node, arrival), now_s + delay_s(node, arrival))
        return node

    def least(nodes: Sequence[Node], key: Callable[[Node], float]) -> Node:
        fewest = min(map(key, nodes))
        ties = [n for n in nodes if key(n) == fewest]
        return ties[0] if len(ties) == 1 else ties[int(rng.random() * len(ties))]

    def round_robin(arrival: Arrival, nodes: Sequence[Node], now_s: float) -> Node:
        nonlocal turn
        turn += 1
        return nodes[(turn - 1) % len(nodes)]

    def outstanding(arrival: Arrival, nodes: Sequence[Node], now_s: float) -> Node:
        return least(nodes, lambda n: n.load)

    def per_slot(arrival: Arrival, nodes: Sequence[Node], now_s: float) -> Node:
        return least(nodes, _per_slot)

    def prefix_aware(arrival: Arrival, nodes: Sequence[Node], now_s: float) -> Node:
        prompt = arrival.prompt_tokens
        warm = [n.cache.warm_tokens(arrival.names, prompt) for n in nodes]
        best = max(warm)
        if best >= WARM_SHARE * prompt:
            holder = min((n for n, w in zip(nodes, warm, strict=True) if w == best), key=_per_slot)
            if _per_slot(holder) <= min(map(_per_slot, nodes)) + 1.0:
                return holder
        return per_slot(arrival, nodes, now_s)

    def tier(wanted: Tier) -> Choose:
        def choose(arrival: Arrival, nodes: Sequence[Node], now_s: float) -> Node:
            return least([n for n in nodes if n.spec.tier is wanted] or nodes, _per_slot)

        return choose

    def min_ttft(arrival: Arrival, nodes: Sequence[Node], now_s: float) -> Node:
        best = min(nodes, key=lambda node: foresee(node, arrival, now_s, whole=False)[0])
        return placed(best, arrival, now_s)

    def exact(arrival: Arrival, nodes: Sequence[Node], now_s: float) -> Node:
        """The cheapest that meets all parts; edge first, then most reuse, then earliest."""

        def rank(node: Node) -> tuple[bool, float, bool, int, float]:
            ttft_s, total_s = foresee(node, arrival, now_s, whole=True)
            if not keeps(arrival, ttft_s, total_s):
                return True, total_s, False, 0, 0.0
            warm = node.cache.warm_tokens(arrival.names, arrival.prompt_tokens)
            return False, node.spec.cost_per_mtoken, node.spec.tier is Tier.CLOUD, -warm, total_s

        return placed(min(nodes, key=rank), arrival, now_s)

    known: dict[str, Choose] = {
        "round-robin": round_robin,
        "least-outstanding": outstanding,
        "load-per-slot": per_slot,
        "prefix-aware": prefix_aware,
        "always-edge": tier(Tier.EDGE),
        "always-cloud": tier(Tier.CLOUD),
        "min-ttft": min_ttft,
        "exact": exact,
    }
    return known[name]


POLICIES = (
    "round-robin",
    "least-outstanding",
    "load-per-slot",
    "prefix-aware",
    "always-edge",
    "always-cloud",
    "min-ttft",
    "exact",
    "tidegate",
)


def keeps(arrival: Arrival, ttft_s: float, total_s: float) -> bool:
    """Whether all limited parts of the budget are met."""
    slo, tpot_ms = arrival.slo, tpot_of(arrival, ttft_s, total_s) * 1000
    limits = ((slo.ttft_ms, ttft_s * 1000), (slo.tpot_ms, tpot_ms), (slo.total_ms, total_s * 1000))
    return all(value <= (math.inf if limit is None else limit) for limit, value in limits)


def tpot_of(arrival: Arrival, ttft_s: float, total_s: float) -> float:
    return (total_s - ttft_s) / (arrival.output_tokens - 1) if arrival.output_tokens > 1 else 0.0


def _per_slot(node: Node) -> float:
    return node.load / node.spec.slots
