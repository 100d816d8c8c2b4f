"""Hard filters: where a request may go at all. Nothing here is a preference, and nothing is ever relaxed.

What a request can never have (model, data class, tenant, placement, context, capability) is checked before
what it may have later (link, health, draining, already tried), so the counts tell "not now" from "never".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from tidegate.routing.domain import (
    ClassRule,
    Health,
    NodeState,
    Placement,
    RouteQuery,
    Snapshot,
    Variant,
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


PASSING = (Filter.NOT_LINKED, Filter.HEALTH, Filter.DRAINING, Filter.EXCLUDED)
"""Filters whose verdict may change by itself."""


class Eligible(NamedTuple):
    """One (node, variant) that may take the request."""

    node: NodeState
    variant: Variant


class Filtered(NamedTuple):
    """What passed, and how many nodes each filter removed (filters that removed none are absent)."""

    eligible: list[Eligible]
    removed: Mapping[str, int]


def apply_filters(snapshot: Snapshot, query: RouteQuery) -> Filtered:
    """All (node, variant) pairs the request may go to."""
    eligible: list[Eligible] = []
    removed: dict[str, int] = {}
    tokens = query.analysis.prompt_tokens + query.max_tokens
    for node in snapshot.nodes:
        variants: Sequence[Variant] = named_variants(node, query.model)
        fell = _node_fails(node, query) if variants else Filter.MODEL
        if fell is None or fell in PASSING:
            variants, lacking = _variants_that_fit(variants, tokens, query.needs)
            fell = lacking or fell
        if fell is None:
            eligible += [Eligible(node, variant) for variant in variants]
        else:
            removed[fell] = removed.get(fell, 0) + 1
    return Filtered(eligible, removed)


def named_variants(node: NodeState, model: str) -> tuple[Variant, ...]:
    """Variants of a node that answer to a model name, an alias or "auto"."""
    variants = node.announcement.variants
    if model == AUTO:
        return variants
    return tuple(v for v in variants if v.model == model or model in v.aliases)


def in_class(node: NodeState, rule: ClassRule) -> bool:
    """Whether a data class allows a node, by what the operator says of it; an empty set allows all."""
    binding = node.binding
    return (
        (not rule.tiers or binding.tier in rule.tiers)
        and (not rule.regions or binding.region in rule.regions)
        and (not rule.trust or binding.trust in rule.trust)
    )


def _variants_that_fit(
    variants: Sequence[Variant], tokens: int, needs: frozenset[str]
) -> tuple[Sequence[Variant], Filter | None]:
    """Variants with room for `tokens` and all capabilities needed, or the filter the last one falls at."""
    fitting = [v for v in variants if tokens <= v.context_tokens]
    if not fitting:
        return (), Filter.CONTEXT
    if needs:
        fitting = [v for v in fitting if needs <= v.capabilities]
        if not fitting:
            return (), Filter.CAPABILITY
    return fitting, None


def _node_fails(node: NodeState, query: RouteQuery) -> Filter | None:
    """The first filter a whole node falls at, whatever its variants."""
    binding = node.binding
    if not in_class(node, query.class_rule):
        return Filter.DATA_CLASS
    if binding.tenants and query.tenant not in binding.tenants:
        return Filter.TENANT
    if query.placement is not Placement.ANY and binding.tier != query.placement.value:
        return Filter.PLACEMENT
    if not node.linked_here:
        return Filter.NOT_LINKED
    load, health = node.load, node.health
    if load.draining or health is Health.DRAINING:
        return Filter.DRAINING
    if health is not Health.READY or not load.ready:
        return Filter.HEALTH
    if query.excluded and node.announcement.node_id in query.excluded:
        return Filter.EXCLUDED
    return None
