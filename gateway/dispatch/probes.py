"""Idle probes: a node that has had no work for a while is asked for a few tokens, so that it is known.

Without them a node that was slow once, and lost its traffic for it, would have to be forgiven blindly; and
one that became slow while it was idle would surprise the next user. Probes carry no user's text, go to idle
nodes only, one at a time, and what they teach comes in the same way as any attempt's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from gateway.dispatch.attempt import Attempt, StallLimits, Upstream
from gateway.dispatch.facts import Facts
from gateway.state import Fleet
from tidegate.routing.domain import (
    PROBE_PRIORITY,
    Analysis,
    AttemptKey,
    Budget,
    Health,
    InputKind,
    Message,
    NodeState,
    Role,
    RouteQuery,
    Sampling,
    Variant,
    Work,
    is_saving,
)
from tidegate.routing.plan import Choice
from tidegate.routing.prediction import Prediction
from tidegate.routing.prefix import canonical_bytes

TENANT = "tidegate-probe"
TOKENS = 4
LIMIT_S = 30.0
# A thousand nodes looked at in one go would hold up every stream for some ms.
LOOKED_AT = 200
MOST_KEPT = 20_000
# A node that looks slow is asked this many times as often: it gets no other chance to show better.
SHUNNED_SHARE = 0.2
_MESSAGES = (Message(Role.USER, "Count from one to three."),)
_PROMPT_TOKENS = 32


class Model(Protocol):
    """Implemented by tidegate.routing.latency.LearnedLatency."""

    def predict(self, node: NodeState, variant: Variant, query: RouteQuery) -> Prediction: ...

    def quiet_s(self, node: NodeState, variant: Variant) -> float:
        """Seconds since the node last taught anything; infinite for a node nothing is known of."""
        ...

    def is_shunned(self, node: NodeState, variant: Variant) -> bool: ...


class Probes:
    """`after_s` is how long a node must have been quiet; 0 probes nobody. `new_token` gives unique texts."""

    def __init__(
        self,
        fleet: Fleet,
        upstream: Upstream,
        model: Model,
        facts: Facts,
        *,
        after_s: float,
        clock: Callable[[], float],
        rng: Callable[[], float],
        new_token: Callable[[], str],
    ) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._model = model
        self._facts = facts
        self._after_s = after_s
        self._clock = clock
        self._rng = rng
        self._new_token = new_token
        self._last_s: dict[tuple[str, str], float] = {}

    async def once(self) -> bool:
        """Probes one node that is due, if there is one; True when it did."""
        if self._after_s <= 0.0:
            return False
        due = [pair for pair in self._idle() if self._is_due(*pair)]
        if not due:
            return False
        node, variant = due[int(self._rng() * len(due)) % len(due)]
        self._last_s[node.node_id, variant.digest] = self._clock()
        await self._probe(node, variant)
        return True

    def _idle(self) -> Iterable[tuple[NodeState, Variant]]:
        """Of at most LOOKED_AT nodes, others each time."""
        nodes = self._fleet.linked()
        if len(self._last_s) > MOST_KEPT:
            self._last_s.clear()
        start = int(self._rng() * len(nodes)) if len(nodes) > LOOKED_AT else 0
        for node in (nodes[start:] + nodes[:start])[:LOOKED_AT]:
            # No model is loaded for a probe, no battery spared is used and no metered link.
            power = node.load.power
            costs = node.load.wake_ms or is_saving(node) or (power is not None and power.metered)
            idle = not node.active and not costs
            if idle and node.health is Health.READY and not node.load.draining:
                yield from ((node, variant) for variant in node.announcement.variants)

    def _is_due(self, node: NodeState, variant: Variant) -> bool:
        shunned = self._model.is_shunned(node, variant)
        after_s = self._after_s * (SHUNNED_SHARE if shunned else 1.0)
        # A node that was just seen for the first time has measured itself a moment ago.
        last_s = self._last_s.setdefault((node.node_id, variant.digest), self._clock())
        if self._clock() - last_s < after_s:
            return False
        return self._model.quiet_s(node, variant) >= after_s

    async def _probe(self, node: NodeState, variant: Variant) -> None:
        query = RouteQuery(
            variant.model, Analysis(_PROMPT_TOKENS, lambda: 0.0), TOKENS, Budget(), 0.5, 0.0, tenant=TENANT
        )
        prediction = self._model.predict(node, variant, query)
        cost = node.binding.cost_per_mtoken
        choice = Choice(node, variant, prediction, 1.0, lambda: 1.0, True, cost)
        work = Work(
            key=AttemptKey(f"probe.{self._new_token()[:12]}", 1),
            tenant=TENANT,
            variant_digest=variant.digest,
            input_kind=InputKind.CHAT,
            input=canonical_bytes(_MESSAGES),
            sampling=Sampling(temperature=0.0),
            max_tokens=TOKENS,
            remaining_ms=LIMIT_S * 1000,
            priority=PROBE_PRIORITY,
        )
        attempt = Attempt(
            self._upstream,
            node.node_id,
            work,
            clock=self._clock,
            limits=StallLimits(first_s=LIMIT_S, between_s=LIMIT_S),
            predicted_ttft_ms=prediction.ttft_ms,
            deadline_s=self._clock() + LIMIT_S,
        )
        attempt.open()
        self._facts.began(choice, attempt)
        try:
            async for _ in attempt.outputs():
                pass
        finally:
            attempt.close()
            self._facts.attempt(choice, attempt, self._clock())
