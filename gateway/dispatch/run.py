"""The state of one request while it is served."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.dispatch.attempt import AttemptOutcome
from gateway.dispatch.caller import Client
from gateway.telemetry import RequestRow
from tidegate.routing.domain import Budget, BudgetOutcome, GenerateRequest, RouteQuery, Timings, Usage
from tidegate.routing.naming import Resolved


@dataclass(slots=True)
class RequestRun:
    """`arrived_s` and `deadline_s` are readings of the dispatcher's clock.

    `input` is what the engine reads, `resolved` what the model's name stands for.
    `work_id` names the request on nodes; its attempts share it.
    `suspicions` counts attempts that may have failed because of the request itself; `consumer_was_slow` is
    of the last attempt that ended.
    """

    request: GenerateRequest
    client: Client
    query: RouteQuery
    input: bytes
    data_class: str
    session: str
    arrived_s: float
    deadline_s: float | None
    row: RequestRow
    resolved: Resolved = Resolved(("auto",))
    work_id: str = ""
    first_token_s: float | None = None
    tokens: int = 0
    suspicions: int = 0
    consumer_was_slow: bool = False

    def timings(self, outcome: AttemptOutcome, now_s: float) -> Timings:
        """TTFT and total count from arrival, retries included; the node's stamps are the last attempt's."""
        total_ms = (now_s - self.arrived_s) * 1000
        ttft_ms = total_ms if self.first_token_s is None else (self.first_token_s - self.arrived_s) * 1000
        stamps = outcome.first_token
        return Timings(
            queue_ms=stamps.queue_ms + stamps.wake_ms if stamps else 0.0,
            prefill_ms=stamps.prefill_ms if stamps else 0.0,
            ttft_ms=ttft_ms,
            tpot_ms=(total_ms - ttft_ms) / (self.tokens - 1) if self.tokens > 1 else 0.0,
            total_ms=total_ms,
            batch_size=stamps.batch_size if stamps else 0,
        )


def usage_of(outcome: AttemptOutcome) -> Usage:
    """The engine's count, completed by its stamps and by what was seen."""
    usage, stamps = outcome.usage, outcome.first_token
    return Usage(
        prompt_tokens=usage.prompt_tokens or (stamps.prompt_tokens if stamps else 0),
        completion_tokens=usage.completion_tokens or outcome.tokens,
        cached_tokens=usage.cached_tokens or (stamps.cached_tokens if stamps else 0),
    )


def budget_outcome(budget: Budget, timings: Timings) -> BudgetOutcome:
    """MET when every limited part was kept."""
    if not budget.limits_anything:
        return BudgetOutcome.NONE
    kept = (
        (budget.ttft_ms is None or timings.ttft_ms <= budget.ttft_ms)
        and (budget.tpot_ms is None or timings.tpot_ms <= budget.tpot_ms)
        and (budget.total_ms is None or timings.total_ms <= budget.total_ms)
    )
    return BudgetOutcome.MET if kept else BudgetOutcome.MISSED
