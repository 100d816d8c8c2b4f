"""How much sooner than a budget asks a prediction must be there: learned from how often budgets were met.

A prediction may be calibrated for every node and still be too hopeful for the one that is chosen: of many,
the one that errs most to its own favour looks best, and more work may come after the decision. So what was
promised is compared with what became of it (adaptive conformal control):

    log f <- log f + STEP x (missed - (1 - target)),    1 <= f <= limit

and a candidate qualifies where its prediction keeps to the time left of the budget divided by f. Where nobody
qualifies so, the budget counts as it was asked for: a margin prefers, it neither refuses nor gives up.

While fewer requests than the target share meet their budgets f rises, else it falls back to 1: over time the
target share meets them, as far as the limit allows. Kept apart by tier, by the parts that are limited and by
how much is promised, because they miss for different reasons. Without news f fades: everybody gets
another chance.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping

from tidegate.routing.domain import Budget, RouteQuery, Tier

STEP = 0.04
LIMIT = 2.0
HALF_LIFE_S = 300.0
# Shares promised between two of these are alike.
_BANDS = (0.75, 0.925, 0.97)
# Nearer to none than this is none.
_LEAST_LOG = 0.005

_Class = tuple[bool, bool, bool, int]


class Margins:
    """One owner; time comes in through decay(). `limit` is the largest factor, 1 learns none."""

    def __init__(self, limit: float = LIMIT, *, half_life_s: float = HALF_LIFE_S) -> None:
        if limit < 1.0 or half_life_s <= 0.0:
            raise ValueError("the limit must be at least 1, the half life positive")
        self._most = math.log(limit)
        self._half_life_s = half_life_s
        self._logs: dict[_Class, dict[Tier, float]] = {}
        self._factors: dict[_Class, Mapping[Tier, float]] = {}

    def of(self, query: RouteQuery) -> Mapping[Tier, float]:
        """Factors above 1 by tier, for requests like this one."""
        if not self._factors:
            return _NONE
        return self._factors.get(_class_of(query), _NONE)

    def largest(self, tier: Tier) -> float:
        """Of all requests' factors there."""
        return max((factors.get(tier, 1.0) for factors in self._factors.values()), default=1.0)

    def record(self, query: RouteQuery, tier: Tier, *, met: bool) -> None:
        """What became of a request that was expected to meet its budget there often enough."""
        logs = self._logs.setdefault(_class_of(query), {})
        moved = logs.get(tier, 0.0) + STEP * ((0.0 if met else 1.0) - (1.0 - query.target_share))
        logs[tier] = min(max(moved, 0.0), self._most)
        self._publish()

    def decay(self, elapsed_s: float) -> None:
        """Time went by."""
        keep = 0.5 ** (max(elapsed_s, 0.0) / self._half_life_s)
        for logs in self._logs.values():
            for tier in logs:
                logs[tier] *= keep
        self._publish()

    def _publish(self) -> None:
        found = {
            kind: {tier: math.exp(log) for tier, log in logs.items() if log > _LEAST_LOG}
            for kind, logs in self._logs.items()
        }
        self._factors = {kind: factors for kind, factors in found.items() if factors}


def tightened(budget: Budget, factor: float, elapsed_ms: float) -> Budget:
    """The same with what is left of it divided by `factor`."""
    if factor <= 1.0:
        return budget
    ttft, tpot, total = budget.ttft_ms, budget.tpot_ms, budget.total_ms
    return Budget(
        None if ttft is None else _left(ttft, factor, elapsed_ms),
        None if tpot is None else tpot / factor,
        None if total is None else _left(total, factor, elapsed_ms),
        budget.target_share,
    )


def budget_on(query: RouteQuery, tier: Tier) -> Budget:
    """The request's budget with the margin of that tier."""
    return tightened(query.budget, query.margins.get(tier, 1.0), query.elapsed_ms)


def _left(limit_ms: float, factor: float, elapsed_ms: float) -> float:
    return elapsed_ms + (limit_ms - elapsed_ms) / factor if limit_ms > elapsed_ms else limit_ms


def _class_of(query: RouteQuery) -> _Class:
    b = query.budget
    parts = (b.ttft_ms is not None, b.tpot_ms is not None, b.total_ms is not None)
    return (*parts, bisect_right(_BANDS, query.target_share))


_NONE: Mapping[Tier, float] = {}
