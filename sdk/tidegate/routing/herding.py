"""Several gateways that look at the same stale view must not all run to one node.

Near-ties are broken by chance and load just sent counts until it is acknowledged; what is left is a view
that is simply wrong, because the others sent too. Then the node is the first to know: every work says how
much its sender believes to be there, and a node that has clearly more, and no slot free, bounces it at once.
That costs one round trip and no computing, and the next attempt sees the node as it is.
"""

from __future__ import annotations

from tidegate.routing.plan import Plan

# How many more sequences than believed are no surprise yet, as a share of the slots: work comes and goes.
SURPRISE_SHARE = 0.5


def most_ahead(plan: Plan) -> int | None:
    """What the chosen node may have, running and waiting, for the plan to hold; None where there is no other
    node as good, so that a bounce would help nobody."""
    first = plan.first
    if not any(c.qualified or not first.qualified for c in plan.fallbacks):
        return None
    node = first.node
    return max(node.active, node.slots) + max(1, round(SURPRISE_SHARE * node.slots)) - 1
