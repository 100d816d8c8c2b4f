"""A run as figures, under the names that every report uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from simulator.fleet import FleetSpec
from simulator.policies import keeps, tpot_of
from simulator.run import Served
from tidegate.routing.domain import Tier

WARM_UP_PER_NODE = 200


def report(
    fleet: FleetSpec, served: Sequence[Served], *, warm_up_per_node: int = WARM_UP_PER_NODE
) -> dict[str, Any]:
    """The first requests count for nobody: a latency model starts cold, caches start empty."""
    counted = served[warm_up_per_node * len(fleet.nodes) :]
    done = [s for s in counted if s.node is not None]
    tokens = sum(_tokens(s) for s in done)
    cloud = [s for s in done if s.node is not None and s.node.spec.tier is Tier.CLOUD]
    by_class = {slo.name: [s for s in counted if s.arrival.slo is slo] for slo in fleet.slos}
    prompts = sum(s.arrival.prompt_tokens for s in done)
    return {
        "requests": len(counted),
        "slo_attainment": _share(map(kept, counted)),
        "slo_attainment_by_class": {k: _share(map(kept, v)) for k, v in by_class.items()},
        "good_attainment": _share(kept(s) and good(s, fleet) for s in counted),
        "cloud_share_requests": len(cloud) / len(done) if done else 0.0,
        "cloud_share_tokens": sum(map(_tokens, cloud)) / tokens if tokens else 0.0,
        "cost": sum(_tokens(s) * s.node.spec.cost_per_mtoken / 1e6 for s in done if s.node is not None),
        "ttft_ms": {k: _quantiles([s.ttft_s * 1000 for s in v if s.node]) for k, v in by_class.items()}
        | {"all": _quantiles([s.ttft_s * 1000 for s in done])},
        "tpot_ms": {k: _quantiles([_tpot_ms(s) for s in v if s.node]) for k, v in by_class.items()}
        | {"all": _quantiles([_tpot_ms(s) for s in done])},
        "prefix_hit_rate": sum(s.cached for s in done) / prompts if prompts else 0.0,
        "rejected": len(counted) - len(done),
        "queue_s": sum(s.queue_s for s in done) / len(done) if done else 0.0,
    }


def kept(served: Served) -> bool:
    return served.node is not None and keeps(served.arrival, served.ttft_s, served.total_s)


def good(served: Served, fleet: FleetSpec) -> bool:
    """Whether the answer is as good as was demanded; most demand nothing."""
    if served.node is None:
        return False
    ability = fleet.ability.get(served.node.spec.variant, 1.0)
    return not served.arrival.required or served.arrival.hardness < ability


def _tokens(served: Served) -> int:
    return served.arrival.prompt_tokens + served.arrival.output_tokens


def _tpot_ms(served: Served) -> float:
    return tpot_of(served.arrival, served.ttft_s, served.total_s) * 1000


def _share(flags: Any) -> float:
    found = list(flags)
    return sum(found) / len(found) if found else 0.0


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        f"p{q}": ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)] if ordered else 0.0
        for q in (50, 95, 99)
    }
