"""P(good): the odds that a variant answers a prompt well enough.

RankedQuality is a stated stand-in, not a certificate: it orders, it does not promise. Perplexity says how
well a variant predicts text, not how well it answers, and comparing it across tokenizers is rough.
CertifiedQuality lets a weaker variant meet a quality asked for only where the deployment's own outcomes
prove it (tidegate.routing.certify).

    ability(v) = BEST - (BEST - WORST) * rank(v) / (ranks - 1)     rank 0 = lowest perplexity in the snapshot
    P(good)    = 1 / (1 + exp((difficulty - ability) / SCALE))

Equal perplexities share a rank; a variant that was never measured counts as worst.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple, Protocol

from tidegate.routing.domain import Snapshot, Variant

BEST_ABILITY = 0.97
WORST_ABILITY = 0.60
SCALE = 0.12


class QualityModel(Protocol):
    """What the policy asks about quality."""

    def p_good(self, variant: Variant, difficulty: float) -> float: ...

    def certified(self, variant: Variant) -> bool:
        """Whether P(good) was established from this deployment's own outcomes."""
        ...


class RankedQuality:
    """Ability by rank of measured perplexity among all variants of a snapshot, healthy or not.

    Nodes that are down keep their rank, so that a small model does not become "the best" when the large one
    is away.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    @cached_property
    def _ability(self) -> dict[float, float]:
        """Made at the first question: a decision that asks for no quality walks no snapshot for it."""
        levels = sorted(
            {
                variant.perplexity
                for group in self._snapshot.groups
                for variant in group.kind.variants
                if variant.perplexity is not None
            }
        )
        step = (BEST_ABILITY - WORST_ABILITY) / max(len(levels) - 1, 1)
        return {level: BEST_ABILITY - step * rank for rank, level in enumerate(levels)}

    def ability(self, variant: Variant) -> float:
        """In [WORST_ABILITY, BEST_ABILITY]."""
        if variant.perplexity is None:
            return WORST_ABILITY
        return self._ability.get(variant.perplexity, WORST_ABILITY)

    def p_good(self, variant: Variant, difficulty: float) -> float:
        return _odds(difficulty, self.ability(variant))

    def certified(self, variant: Variant) -> bool:
        return False

    def is_best(self, variant: Variant) -> bool:
        """Whether no variant of the snapshot is known to be better."""
        return self.ability(variant) >= max(self._ability.values(), default=WORST_ABILITY)


class Certificate(NamedTuple):
    """Proven for one variant: up to this difficulty at most `worse_share` of all answers are worse."""

    threshold: float
    worse_share: float


# Nobody who asks for better than even odds gets an answer that nothing proves.
UNPROVEN = 0.5


class CertifiedQuality:
    """What is proven counts: until then a quality asked for leads to the best variant.

    The best variant keeps the stand-in's odds, as everything is measured against it. A certified one has them
    less its promise, up to the certified difficulty. All others keep their order, below UNPROVEN.
    """

    def __init__(self, snapshot: Snapshot, certificates: Mapping[str, Certificate]) -> None:
        """`certificates` by variant digest."""
        self._ranked = RankedQuality(snapshot)
        self._certificates = certificates

    def p_good(self, variant: Variant, difficulty: float) -> float:
        if self._ranked.is_best(variant):
            return self._ranked.p_good(variant, difficulty)
        proven = self._certificates.get(variant.digest)
        if proven is not None and difficulty <= proven.threshold:
            return (1.0 - proven.worse_share) * _odds(difficulty, BEST_ABILITY)
        return UNPROVEN * self._ranked.p_good(variant, difficulty)

    def certified(self, variant: Variant) -> bool:
        return variant.digest in self._certificates


def _odds(difficulty: float, ability: float) -> float:
    return 1.0 / (1.0 + math.exp((difficulty - ability) / SCALE))
