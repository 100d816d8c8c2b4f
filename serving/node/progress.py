"""Timings of one local request and whether they met its budget."""

from __future__ import annotations

from collections.abc import Callable

from tidegate.routing.domain import (
    Budget,
    BudgetOutcome,
    Failure,
    Finish,
    Finished,
    FinishReason,
    FirstToken,
    SequenceOutput,
    Timings,
)


class Progress:
    """Starts counting when it is made; `clock` gives seconds."""

    def __init__(self, budget: Budget, clock: Callable[[], float]) -> None:
        self._budget = budget
        self._clock = clock
        self._start_s = clock()
        self._first_s: float | None = None
        self._tokens = 0
        self._stamps: FirstToken | None = None

    def note(self, output: SequenceOutput) -> None:
        if output.count and self._first_s is None:
            self._first_s = self._clock()
        self._tokens += output.count
        self._stamps = self._stamps or output.first_token

    def finished(self, finish: Finish) -> Finished:
        """The last event of a sequence that did not fail."""
        result = finish.result
        reason = FinishReason.CANCELLED if isinstance(result, Failure) else result
        timings = self._timings()
        return Finished(reason, finish.usage, timings, budget=budget_outcome(self._budget, timings))

    def _timings(self) -> Timings:
        now_s = self._clock()
        first_s = now_s if self._first_s is None else self._first_s
        stamps = self._stamps
        return Timings(
            queue_ms=stamps.queue_ms if stamps else 0.0,
            prefill_ms=stamps.prefill_ms if stamps else 0.0,
            ttft_ms=(first_s - self._start_s) * 1000.0,
            tpot_ms=(now_s - first_s) * 1000.0 / (self._tokens - 1) if self._tokens > 1 else 0.0,
            total_ms=(now_s - self._start_s) * 1000.0,
            batch_size=stamps.batch_size if stamps else 0,
        )


def budget_outcome(budget: Budget, timings: Timings) -> BudgetOutcome:
    """NONE without limits, else MET when every limit held."""
    if not budget.limits_anything:
        return BudgetOutcome.NONE
    parts = (
        (budget.ttft_ms, timings.ttft_ms),
        (budget.tpot_ms, timings.tpot_ms),
        (budget.total_ms, timings.total_ms),
    )
    met = all(limit is None or spent <= limit for limit, spent in parts)
    return BudgetOutcome.MET if met else BudgetOutcome.MISSED
