"""Copies of requests to another model, whose answers are thrown away: what would it cost, how fast is it?

A copy starts when its request has ended and only on a node with room, at the lowest priority, under the same
data class, tenant and filters. It takes no other node's place, is never retried, and remembers no session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from gateway.dispatch.attempt import Attempt
from gateway.dispatch.facts import Facts
from gateway.dispatch.run import RequestRun, usage_of
from gateway.telemetry import Metrics, RequestLog, RequestRow
from tidegate.routing.admission import has_room
from tidegate.routing.domain import Budget, Failure, RouteQuery
from tidegate.routing.plan import Choice, Plan, Refusal

MAX_AT_ONCE = 8
LOWEST_PRIORITY = -10


def _is_free(choice: Choice) -> bool:
    """Nobody waits for it, and no model is loaded for it."""
    return has_room(choice) and not choice.prediction.wake_ms


class Shadows:
    """Owns its tasks; close() ends them."""

    def __init__(
        self,
        route: Callable[[RouteQuery], Plan | Refusal],
        attempt: Callable[[RequestRun, Plan], Attempt],
        audit: Callable[[RequestRun, str, Choice | None], None],
        facts: Facts,
        metrics: Metrics,
        log: RequestLog,
        clock: Callable[[], float],
        paired: Callable[[RequestRun, Choice, Choice], None],
    ) -> None:
        """`paired` is told of each copy that was answered: whose, and which two choices."""
        self._route = route
        self._attempt = attempt
        self._audit = audit
        self._facts = facts
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._paired = paired
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, run: RequestRun, served: Choice) -> None:
        """`served` has answered. Nothing where the request has no shadow, or nobody has time for it."""
        model = run.resolved.shadow
        if not model or run.request.embed:
            return
        query = replace(
            run.query, model=model, budget=Budget(), min_p_good=0.0, session=None, excluded=frozenset()
        )
        plan = self._route(query)
        if isinstance(plan, Refusal) or not _is_free(plan.first) or len(self._tasks) >= MAX_AT_ONCE:
            self._metrics.shadows.labels("skipped").inc()
            return
        task = asyncio.create_task(self._run(run, served, plan, query), name="shadow")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, asked: RequestRun, served: Choice, plan: Plan, query: RouteQuery) -> None:
        choice = plan.first
        request = replace(asked.request, priority=LOWEST_PRIORITY, budget=Budget())
        row = RequestRow(
            request.request_id, asked.client.tenant, query.model, asked.data_class, code="shadow"
        )
        run = replace(
            asked, request=request, query=query, row=row, work_id=f"{asked.work_id}.s", deadline_s=None
        )
        self._audit(run, "shadowed", choice)
        row.node, row.tier, row.attempts = choice.node.announcement.name, choice.node.binding.tier.value, 1
        attempt = self._attempt(run, plan)
        outcome = "cancelled"
        try:
            attempt.open()
            async with aclosing(attempt.outputs()) as outputs:
                async for _ in outputs:
                    pass
            assert attempt.outcome is not None
            outcome = "failed" if isinstance(attempt.outcome.result, Failure) else "answered"
            usage = usage_of(attempt.outcome)
            row.prompt_tokens, row.completion_tokens = usage.prompt_tokens, usage.completion_tokens
            tokens = usage.prompt_tokens + usage.completion_tokens
            row.cost_per_mtoken, row.cost = choice.cost_per_mtoken, choice.cost_per_mtoken * tokens / 1e6
            row.ttft_ms, row.total_ms = (attempt.ttft_s or 0.0) * 1000, attempt.outcome.duration_s * 1000
            if outcome == "answered":
                self._paired(asked, served, choice)
        finally:
            attempt.close()
            self._facts.attempt(choice, attempt, self._clock())
            self._metrics.shadows.labels(outcome).inc()
            self._log.write(row)
