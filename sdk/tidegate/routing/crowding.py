"""Which prompts the cheapest nodes are too busy for: learned from what is asked for and how full they are.

A prompt that computes for seconds on a small node keeps everybody else's first token waiting there, and who
cannot wait goes to a dearer node instead. Served in the order of arrival, busy nodes therefore serve fewer
requests than they could. With a prompt's own prefill time s there, the mean m of those that fit their
budgets, and the share b of slots that are taken, a prompt pushes off about b s / m others. It leaves the
cheapest nodes to them, where a dearer one qualifies as well, if

    b s > weight m

Where nobody is busy nothing is pushed off, and where all nodes cost the same nobody is dearer: every prompt
then goes where it would have gone. Models are kept apart: they run on other nodes, at other speeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tidegate.routing.plan import Plan

WEIGHT = 0.75
# The share of the newest decision in the means: they follow the last hundred or so.
NEWEST = 0.01
# The one that was first asked for is forgotten beyond.
MAX_MODELS = 256


@dataclass(slots=True)
class _Means:
    busy: float = 0.0
    own_ms: float = 0.0


class Crowding:
    """One owner. `weight` 0: prompts of any length go to the cheapest node that qualifies."""

    def __init__(self, weight: float = WEIGHT) -> None:
        if not 0.0 <= weight < math.inf:
            raise ValueError("the weight must be a number that is not negative")
        self._weight = weight
        self._of: dict[str, _Means] = {}

    def longest_ms(self, model: str) -> float:
        """The longest prefill, in ms, for the cheapest nodes where a dearer one qualifies as well."""
        means = self._of.get(model)
        if means is None or not self._weight or not means.busy or not means.own_ms:
            return math.inf
        return self._weight * means.own_ms / means.busy

    def decided(self, plan: Plan) -> None:
        """What a decision saw. It says nothing where all nodes cost the same."""
        cheap, query = plan.cheap, plan.query
        if not cheap:
            return
        means = self._of.get(query.model) or self._began(query.model)
        taken = sum(min(c.node.active / c.node.slots, 1.0) for c in cheap) / len(cheap)
        means.busy += NEWEST * (taken - means.busy)
        own_ms, limit_ms = min(c.prediction.own_prefill_ms for c in cheap), query.budget.ttft_ms
        if limit_ms is None or own_ms <= limit_ms:
            means.own_ms += NEWEST * (own_ms - means.own_ms)

    def _began(self, model: str) -> _Means:
        if len(self._of) >= MAX_MODELS:
            del self._of[next(iter(self._of))]
        means = self._of[model] = _Means()
        return means
