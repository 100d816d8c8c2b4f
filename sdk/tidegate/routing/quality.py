"""P(good): the odds that a variant answers a prompt well enough.

A stated stand-in, not a certificate: it orders, it does not promise. Perplexity says how well a variant
predicts text, not how well it answers, and comparing it across tokenizers is rough. The certified estimate
comes from a deployment's own outcomes and takes the same seam.

    ability(v) = BEST - (BEST - WORST) * rank(v) / (ranks - 1)     rank 0 = lowest perplexity in the snapshot
    P(good)    = 1 / (1 + exp((difficulty - ability) / SCALE))

Equal perplexities share a rank; a variant that was never measured counts as worst.
"""

from __future__ import annotations

import math
from typing import Protocol

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
        levels = sorted(
            {
                variant.perplexity
                for node in snapshot.nodes
                for variant in node.announcement.variants
                if variant.perplexity is not None
            }
        )
        step = (BEST_ABILITY - WORST_ABILITY) / max(len(levels) - 1, 1)
        self._ability = {level: BEST_ABILITY - step * rank for rank, level in enumerate(levels)}

    def ability(self, variant: Variant) -> float:
        """In [WORST_ABILITY, BEST_ABILITY]."""
        if variant.perplexity is None:
            return WORST_ABILITY
        return self._ability.get(variant.perplexity, WORST_ABILITY)

    def p_good(self, variant: Variant, difficulty: float) -> float:
        return 1.0 / (1.0 + math.exp((difficulty - self.ability(variant)) / SCALE))

    def certified(self, variant: Variant) -> bool:
        return False
