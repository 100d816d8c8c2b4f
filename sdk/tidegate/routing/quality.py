"""P(good): the odds that a variant answers a prompt well enough.

RankedQuality is a stated stand-in, not a certificate: it orders, it does not promise. Perplexity says how
well a variant predicts text, not how well it answers, and comparing it across tokenizers is rough.
CertifiedQuality lets a weaker variant meet a quality asked for only where the deployment's own outcomes
prove it (tidegate.routing.certify).

    ability(v) = BEST - (BEST - WORST) * rank(v) / (ranks - 1)     rank 0 = the best of the snapshot
    P(good)    = 1 / (1 + exp((difficulty - ability) / SCALE))

Where the operator states an order, its variants rank by it, before all others. Others rank by what a token of
their model costs at most, dearer before cheaper: nobody can measure the perplexity of a cloud's model, and
nobody pays more for a weaker one. At equal cost models that run in the cloud come first. Variants of a model
rank by their perplexity; who was never measured is first in the cloud and last on edges. Equals share a rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

from tidegate.routing.certificates import Certificate, Certified
from tidegate.routing.domain import Kind, Snapshot, Tier, Variant

BEST_ABILITY = 0.97
WORST_ABILITY = 0.60
SCALE = 0.12


class QualityModel(Protocol):
    """What the policy asks about quality."""

    def p_good(self, variant: Variant, difficulty: float) -> float: ...

    def certified(self, variant: Variant) -> float | None:
        """Difficulty up to which P(good) was established from this deployment's own outcomes; None where it
        was not."""
        ...


# Place in the operator's order, or the most its model costs, whether it runs on edges alone, perplexity.
_Level = tuple[bool, float, bool, float]
# So much of a digest names a variant.
_DIGEST_CHARS = 12


def names(word: str, variant: Variant) -> bool:
    """Whether an operator's word means the variant: its digest or the first 12 characters of it (with or
    without "sha256:"), MODEL:QUANTIZATION, or the model, by its name or an alias."""
    known = (variant.model, variant.digest, f"{variant.model}:{variant.quantization}")
    if word in known or word in variant.aliases:
        return True
    digest, start = variant.digest.removeprefix("sha256:"), word.removeprefix("sha256:")
    return len(start) >= _DIGEST_CHARS and digest.startswith(start)


class RankedQuality:
    """Ability by rank among all variants of a snapshot, healthy or not.

    Nodes that are down keep their rank, so that a small model does not become "the best" when the large one
    is away. `order` names variants from the best down (see names()).
    """

    def __init__(self, snapshot: Snapshot, order: Sequence[str] = ()) -> None:
        self._snapshot = snapshot
        self._order = order

    @cached_property
    def _ability(self) -> dict[_Level, float]:
        """Made at the first question: a decision that asks for no quality walks no snapshot for it."""
        variants = (v for kind in self._kinds for v in kind.variants)
        levels = sorted({level for v in variants if (level := self._level(v)) is not None})
        step = (BEST_ABILITY - WORST_ABILITY) / max(len(levels) - 1, 1)
        return {level: BEST_ABILITY - step * rank for rank, level in enumerate(levels)}

    def ability(self, variant: Variant) -> float:
        """In [WORST_ABILITY, BEST_ABILITY]."""
        level = self._level(variant)
        return WORST_ABILITY if level is None else self._ability.get(level, WORST_ABILITY)

    @cached_property
    def _kinds(self) -> tuple[Kind, ...]:
        """Also of nodes that left a moment ago and may come back."""
        return (*(group.kind for group in self._snapshot.groups), *self._snapshot.departed)

    @cached_property
    def _standing(self) -> dict[str, tuple[float, bool]]:
        """By model: what a million of its tokens costs at most, and whether it runs on edges alone."""
        found: dict[str, tuple[float, bool]] = {}
        for kind in self._kinds:
            for variant in kind.variants:
                cost, edge_only = found.get(variant.model, (0.0, True))
                edge_only = edge_only and kind.binding.tier is Tier.EDGE
                found[variant.model] = max(cost, kind.binding.cost_per_mtoken), edge_only
        return found

    @cached_property
    def _in_cloud(self) -> set[str]:
        """Digests of what runs in the cloud."""
        return {v.digest for k in self._kinds if k.binding.tier is not Tier.EDGE for v in k.variants}

    def _level(self, variant: Variant) -> _Level | None:
        """Smaller is better; None for what the snapshot does not know."""
        for place, word in enumerate(self._order):
            if names(word, variant):
                return False, float(place), False, 0.0
        standing = self._standing.get(variant.model)
        if standing is None:
            return None
        cost, edge_only = standing
        if variant.perplexity is not None:
            return True, -cost, edge_only, variant.perplexity
        # Whole models run in clouds, where nobody measures them, and quantized ones on edges.
        return True, -cost, edge_only, 0.0 if variant.digest in self._in_cloud else math.inf

    def p_good(self, variant: Variant, difficulty: float) -> float:
        return _odds(difficulty, self.ability(variant))

    def certified(self, variant: Variant) -> float | None:
        return None

    def is_best(self, variant: Variant) -> bool:
        """Whether no variant of the snapshot is known to be better."""
        return self.ability(variant) >= self._highest

    @cached_property
    def _highest(self) -> float:
        return max(self._ability.values(), default=WORST_ABILITY)

    @cached_property
    def best(self) -> str:
        """Digest of the best variant, of several that are alike the first of these; "" without any."""
        variants = {v.digest: v for kind in self._kinds for v in kind.variants}
        return min((digest for digest, v in variants.items() if self.is_best(v)), default="")


# Nobody who asks for better than even odds gets an answer that nothing proves.
UNPROVEN = 0.5


class CertifiedQuality:
    """What is proven counts: until then a quality asked for leads to the best variant.

    The best variant keeps the stand-in's odds, as everything is measured against it. A certified one has them
    less its promise, up to the certified difficulty. All others keep their order, below UNPROVEN.
    Certificates hold beside the best variant that they were made beside, and beside no other.
    """

    def __init__(self, snapshot: Snapshot, certified: Certified, order: Sequence[str] = ()) -> None:
        """`order` as for RankedQuality."""
        self._ranked = RankedQuality(snapshot, order)
        self._certified = certified

    def p_good(self, variant: Variant, difficulty: float) -> float:
        if self._ranked.is_best(variant):
            return self._ranked.p_good(variant, difficulty)
        proven = self._proven(variant)
        if proven is not None and difficulty <= proven.threshold:
            return (1.0 - proven.worse_share) * _odds(difficulty, BEST_ABILITY)
        return UNPROVEN * self._ranked.p_good(variant, difficulty)

    def certified(self, variant: Variant) -> float | None:
        """None for the best variant, whose odds are the stand-in's."""
        proven = None if self._ranked.is_best(variant) else self._proven(variant)
        return None if proven is None else proven.threshold

    def _proven(self, variant: Variant) -> Certificate | None:
        found, basis = self._certified.by_variant.get(variant.digest), self._certified.basis
        if found is None or basis is None or basis.best != self._ranked.best:
            return None
        return found


def _odds(difficulty: float, ability: float) -> float:
    return 1.0 / (1.0 + math.exp((difficulty - ability) / SCALE))
