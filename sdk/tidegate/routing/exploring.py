"""About one request in a hundred learns something: it goes to another node that would do as well.

Only inside slack: the other node meets the request's budget and quality with the odds asked for, at no higher
price. A node that does not qualify is not tried on a user's request; idle probes see to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tidegate.routing.costs import most_of
from tidegate.routing.plan import Pick, Plan
from tidegate.routing.policy import WARM_MIN_TOKENS

EXPLORED_SHARE = 0.01


def explored(plan: Plan, rng: Callable[[], float], share: float = EXPLORED_SHARE) -> Plan:
    """The plan as it is, or now and then with another candidate first. `rng` gives numbers in [0, 1)."""
    if share <= 0.0 or len(plan.choices) < 2 or plan.at_risk or plan.pick in (Pick.BASELINE, Pick.WARM):
        return plan
    chance = rng()
    if chance < 1.0 - share:
        return plan
    first = plan.first
    # What lies warm there is worth more than what would be learned elsewhere.
    limit = most_of(first)
    warm = first.prediction.cached_tokens - WARM_MIN_TOKENS
    others = [
        c
        for c in plan.fallbacks
        if c.qualified
        and c.cost_per_mtoken <= limit
        and c.prediction.cached_tokens > warm
        # What is learned is not worth loading a model for.
        and not c.prediction.wake_ms
    ]
    if not others:
        return plan
    chosen = others[int((chance - (1.0 - share)) / share * len(others)) % len(others)]
    rest = (c for c in plan.choices if c is not chosen)
    return replace(plan, choices=(chosen, *rest), pick=Pick.EXPLORED)
