"""Hard filters: where a request may go at all. Nothing here is a preference, and nothing is ever relaxed.

What a request can never have (model, data class, tenant, placement, context, capability) is checked before
what it may have later (link, health, draining, already tried), so the counts tell "not now" from "never".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from tidegate.routing.domain import (
    Binding,
    ClassRule,
    Health,
    Kind,
    NodeState,
    Placement,
    RouteQuery,
    Row,
    Snapshot,
    Variant,
    is_kind,
    is_up,
)

AUTO = "auto"


class Filter(StrEnum):
    """Names of the filters in the order they are applied; a node counts where its last variant falls."""

    MODEL = "model"
    DATA_CLASS = "data_class"
    TENANT = "tenant"
    PLACEMENT = "placement"
    CONTEXT = "context_length"
    CAPABILITY = "capability"
    NOT_LINKED = "not_linked"
    HEALTH = "health"
    DRAINING = "draining"
    EXCLUDED = "excluded"
    BATTERY = "battery"
    LEFT = "left"


PASSING = (Filter.NOT_LINKED, Filter.HEALTH, Filter.DRAINING, Filter.EXCLUDED, Filter.LEFT)
"""Filters whose verdict may change by itself."""


class Eligible(NamedTuple):
    """One (node, variant) that may take the request."""

    node: NodeState
    variant: Variant


class Filtered(NamedTuple):
    """What passed, and how many nodes each filter removed (filters that removed none are absent)."""

    eligible: list[Eligible]
    removed: Mapping[str, int]


class Pool(NamedTuple):
    """Nodes of one kind that passed, with the variants that may serve the request."""

    kind: Kind
    nodes: Row
    variants: Sequence[Variant]

    def has(self, node: NodeState) -> bool:
        """Whether a node of the same snapshot is one of `nodes`."""
        return is_up(node) and is_kind(node, self.kind)


def pools(snapshot: Snapshot, query: RouteQuery) -> tuple[list[Pool], dict[str, int]]:
    """What passed, kind by kind, and how many nodes each filter removed.

    Nodes already tried are counted as removed, but still in their pools. Nodes that save their batteries are
    left out where somebody else is. Where none passed, those that left a moment ago are counted: they may be
    back, as after a restart.
    """
    found: list[Pool] = []
    removed: dict[str, int] = {}
    saving = False
    tokens = query.fit_tokens
    if tokens is None:
        tokens = query.analysis.prompt_tokens + query.max_tokens
    for kind, ready, down in snapshot.groups:
        fell, variants = _kind_fails(kind, query, tokens)
        if fell is not None:
            removed[fell] = removed.get(fell, 0) + ready.size + len(down)
            continue
        for node in down:
            fell = _not_now(node)
            removed[fell] = removed.get(fell, 0) + 1
        if ready.size:
            saving = saving or kind.saving
            # The constructor of a named tuple costs twice as much.
            found.append(tuple.__new__(Pool, (kind, ready, variants)))
    if saving:
        found = _unspared(found, query, removed)
    if not found:
        left = sum(1 for kind in snapshot.departed if _kind_fails(kind, query, tokens)[0] is None)
        if left:
            removed[Filter.LEFT] = left
    if query.excluded:
        tried = [snapshot.get(node_id) for node_id in query.excluded]
        for pool in found:
            here = sum(1 for node in tried if node is not None and pool.has(node))
            if here:
                removed[Filter.EXCLUDED] = removed.get(Filter.EXCLUDED, 0) + here
    return found, removed


def _unspared(found: list[Pool], query: RouteQuery, removed: dict[str, int]) -> list[Pool]:
    """Without the nodes that save their batteries, if anybody else is left who was not tried."""
    spared = [pool for pool in found if pool.kind.saving]
    others = [pool for pool in found if not pool.kind.saving]
    if not any(node.node_id not in query.excluded for pool in others for node in pool.nodes):
        return found
    removed[Filter.BATTERY] = sum(len(pool.nodes) for pool in spared)
    return others


def apply_filters(snapshot: Snapshot, query: RouteQuery) -> Filtered:
    """All (node, variant) pairs the request may go to."""
    found, removed = pools(snapshot, query)
    return Filtered(members(found, query.excluded), removed)


def members(found: Sequence[Pool], excluded: frozenset[str]) -> list[Eligible]:
    """All (node, variant) pairs of the pools but those of nodes already tried."""
    # The constructor of a named tuple costs twice as much.
    new = tuple.__new__
    return [
        new(Eligible, (node, variant))
        for pool in found
        for node in pool.nodes
        if not excluded or node.announcement.node_id not in excluded
        for variant in pool.variants
    ]


def named_variants(variants: tuple[Variant, ...], model: str) -> tuple[Variant, ...]:
    """Those that answer to a model name, an alias or "auto"."""
    if model == AUTO:
        return variants
    return tuple(v for v in variants if v.model == model or model in v.aliases)


def in_class(binding: Binding, rule: ClassRule) -> bool:
    """Whether a data class allows a node, by what the operator says of it; an empty set allows all."""
    return (
        (not rule.tiers or binding.tier in rule.tiers)
        and (not rule.regions or binding.region in rule.regions)
        and (not rule.trust or binding.trust in rule.trust)
    )


def _variants_that_fit(
    variants: Sequence[Variant], tokens: int, needs: frozenset[str]
) -> tuple[Sequence[Variant], Filter | None]:
    """Variants with room for `tokens` and all capabilities needed, or the filter the last one falls at."""
    if len(variants) == 1 and not needs and tokens <= variants[0].context_tokens:
        return variants, None
    fitting = [v for v in variants if tokens <= v.context_tokens]
    if not fitting:
        return (), Filter.CONTEXT
    if needs:
        fitting = [v for v in fitting if needs <= v.capabilities]
        if not fitting:
            return (), Filter.CAPABILITY
    return fitting, None


def _kind_fails(kind: Kind, query: RouteQuery, tokens: int) -> tuple[Filter | None, Sequence[Variant]]:
    """The first lasting filter that all nodes of a kind fall at, or the variants that may serve."""
    variants = kind.variants if query.model == AUTO else named_variants(kind.variants, query.model)
    if not variants:
        return Filter.MODEL, ()
    binding = kind.binding
    if not in_class(binding, query.class_rule):
        return Filter.DATA_CLASS, ()
    if binding.tenants and query.tenant not in binding.tenants:
        return Filter.TENANT, ()
    if query.placement is not Placement.ANY and binding.tier != query.placement.value:
        return Filter.PLACEMENT, ()
    fitting, lacking = _variants_that_fit(variants, tokens, query.needs)
    return lacking, fitting


def _not_now(node: NodeState) -> Filter:
    """Why a node takes no work at the moment."""
    if not node.linked_here:
        return Filter.NOT_LINKED
    if node.load.draining or node.health is Health.DRAINING:
        return Filter.DRAINING
    return Filter.HEALTH
