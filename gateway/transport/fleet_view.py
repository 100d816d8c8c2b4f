"""Models as the fleet serves them, for both front doors."""

from __future__ import annotations

from tidegate.routing.domain import Health, Snapshot, Variant
from tidegate.wire.fleet import ModelInfo


def models_of(snapshot: Snapshot, tenant: str) -> tuple[ModelInfo, ...]:
    """All models of the nodes that work for a tenant, by name; variants once each, aliases sorted."""
    variants: dict[str, dict[str, Variant]] = {}
    ready: dict[str, set[str]] = {}
    for node in snapshot.nodes:
        if node.binding.tenants and tenant not in node.binding.tenants:
            continue
        for variant in node.announcement.variants:
            variants.setdefault(variant.model, {})[variant.digest] = variant
            nodes = ready.setdefault(variant.model, set())
            if node.health is Health.READY and node.linked_here:
                nodes.add(node.node_id)
    return tuple(
        ModelInfo(
            name=name,
            aliases=tuple(sorted({a for v in found.values() for a in v.aliases})),
            variants=tuple(found.values()),
            ready_nodes=len(ready[name]),
        )
        for name, found in sorted(variants.items())
    )
