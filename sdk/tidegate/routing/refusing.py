"""Turning "nobody" into a reason: what stood in the way, and whether it passes by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidegate.routing.domain import Budget, Code, RouteQuery
from tidegate.routing.filters import PASSING, Filter
from tidegate.routing.latency import LatencyModel
from tidegate.routing.plan import MAX_CANDIDATES, Choice, Reason, Refusal, good_enough
from tidegate.routing.prediction import Prediction

RETRY_UNHEALTHY_MS = 1000.0
RETRY_MIN_MS = 50.0

_REASON = {
    Filter.MODEL: Reason.MODEL_UNKNOWN,
    Filter.DATA_CLASS: Reason.DATA_CLASS,
    Filter.TENANT: Reason.NOT_PERMITTED,
    Filter.PLACEMENT: Reason.NOT_PERMITTED,
    Filter.CONTEXT: Reason.CONTEXT_LENGTH,
    Filter.CAPABILITY: Reason.CAPABILITY,
    Filter.NOT_LINKED: Reason.NOT_LINKED,
    Filter.HEALTH: Reason.ALL_UNHEALTHY,
    Filter.DRAINING: Reason.ALL_DRAINING,
    Filter.EXCLUDED: Reason.ALL_TRIED,
    Filter.LEFT: Reason.ALL_LEFT,
}
_CODE = {
    Filter.MODEL: Code.NOT_FOUND,
    Filter.DATA_CLASS: Code.FAILED_PRECONDITION,
    Filter.TENANT: Code.FAILED_PRECONDITION,
    Filter.PLACEMENT: Code.FAILED_PRECONDITION,
    Filter.CONTEXT: Code.INVALID_ARGUMENT,
    Filter.CAPABILITY: Code.FAILED_PRECONDITION,
}
_LASTING = (
    Filter.CAPABILITY,
    Filter.CONTEXT,
    Filter.PLACEMENT,
    Filter.TENANT,
    Filter.DATA_CLASS,
    Filter.MODEL,
)
# Not TENANT: it says nothing of the request, and other tenants' nodes are none of the client's business.
_RESTRICTING = (Filter.DATA_CLASS, Filter.PLACEMENT)


def no_candidate(query: RouteQuery, removed: Mapping[str, int]) -> Refusal:
    """Every node fell at a hard filter.

    Where only passing troubles keep the permitted nodes away while a restriction keeps others out, the
    restriction is the reason named (it is why the others do not help) and the code says that it may pass.
    """
    if not removed:
        return Refusal(Reason.NO_NODE, Code.UNAVAILABLE, query, {}, RETRY_UNHEALTHY_MS)
    passing = [f for f in PASSING if f in removed]
    if passing:
        restricting = next((f for f in _RESTRICTING if f in removed), None)
        named = restricting or max(passing, key=lambda f: removed[f])
        return Refusal(_REASON[named], Code.UNAVAILABLE, query, removed, RETRY_UNHEALTHY_MS)
    lasting = next(f for f in _LASTING if f in removed)
    return Refusal(_REASON[lasting], _CODE[lasting], query, removed)


def unmeetable(
    query: RouteQuery,
    removed: Mapping[str, int],
    choices: Sequence[Choice],
    best: Sequence[Choice],
    model: LatencyModel,
) -> Refusal:
    """Candidates exist and the request would rather be refused than miss. `best`: those worth showing."""
    kept = tuple(best[:MAX_CANDIDATES])
    able = [c for c in choices if good_enough(c.p_good_of, query)]
    if not able:
        return Refusal(
            Reason.QUALITY_UNMEETABLE, Code.FAILED_PRECONDITION, query, removed, None, choices=kept
        )
    fastest = min(able, key=lambda c: c.prediction.ttft_ms)
    return Refusal(
        Reason.BUDGET_UNMEETABLE,
        Code.RESOURCE_EXHAUSTED,
        query,
        removed,
        retry_after_ms=_retry_after_ms(query, able, model),
        best_ttft_ms=fastest.prediction.ttft_ms,
        best_total_ms=min(c.prediction.total_ms for c in able),
        meetable=meetable_budget(fastest.prediction, query, model),
        choices=kept,
    )


def meetable_budget(prediction: Prediction, query: RouteQuery, model: LatencyModel) -> Budget:
    """The parts the request limited, all scaled from their predictions by the one smallest common factor
    that meets the share asked for."""
    asked = query.budget
    elapsed = query.elapsed_ms

    def scaled(factor: float) -> Budget:
        return Budget(
            None if asked.ttft_ms is None else elapsed + prediction.ttft_ms * factor,
            None if asked.tpot_ms is None else prediction.tpot_ms * factor,
            None if asked.total_ms is None else elapsed + prediction.total_ms * factor,
            asked.target_share,
        )

    low, high = 0.0, 1.0
    while high < 1024.0 and model.p_meet(prediction, scaled(high), elapsed) < query.target_share:
        high *= 2.0
    for _ in range(20):
        middle = (low + high) / 2.0
        if model.p_meet(prediction, scaled(middle), elapsed) >= query.target_share:
            high = middle
        else:
            low = middle
    return scaled(high)


def _retry_after_ms(query: RouteQuery, able: Sequence[Choice], model: LatencyModel) -> float | None:
    """The shortest queue without which the budget would be met; None where no empty node would meet it.

    A retry starts its budget anew, so time already spent does not count.
    """
    waits = []
    for choice in able:
        p = choice.prediction
        idle = p._replace(ttft_ms=p.ttft_ms - p.queue_ms, total_ms=p.total_ms - p.queue_ms, queue_ms=0.0)
        if model.p_meet(idle, query.budget, 0.0) >= query.target_share:
            waits.append(p.queue_ms)
    return max(min(waits), RETRY_MIN_MS) if waits else None
