"""Models as the fleet serves them, for both front doors."""

from __future__ import annotations

from tidegate.routing.domain import Health, Snapshot, Variant
from tidegate.routing.naming import ModelNames
from tidegate.wire.fleet import ModelInfo


def models_of(snapshot: Snapshot, tenant: str, names: ModelNames | None = None) -> tuple[ModelInfo, ...]:
    """All models of the nodes that work for a tenant, by name; variants once each, aliases sorted. Then the
    operator's names that stand for any of them."""
    served = _served(snapshot, tenant)
    words = {word: model for model in served for word in (model.name, *model.aliases)}
    named = []
    for name in () if names is None else names.all:
        behind = [words[target] for target in name.targets if target in words]
        if name.name not in words and (behind or "auto" in name.targets):
            behind = behind or list(served)
            variants = {v.digest: v for model in behind for v in model.variants}
            ready = max((model.ready_nodes for model in behind), default=0)
            named.append(ModelInfo(name.name, variants=tuple(variants.values()), ready_nodes=ready))
    return (*served, *named)


def _served(snapshot: Snapshot, tenant: str) -> tuple[ModelInfo, ...]:
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
