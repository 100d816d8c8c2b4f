"""Facts out: what each attempt and each request taught. The only place that writes observations."""

from __future__ import annotations

from collections.abc import Callable

from gateway.dispatch.attempt import Attempt
from gateway.dispatch.caller import Client
from gateway.dispatch.run import RequestRun
from gateway.telemetry import Metrics, RequestLog, RequestRow
from tidegate.routing.correction import Corrections
from tidegate.routing.domain import Cause, Failure, Finished, GenerateRequest, ServeError
from tidegate.routing.observation import Observation, Outcome
from tidegate.routing.plan import Choice

# How long a node that let an attempt stand still gets no new work, in seconds.
STALL_PAUSE_S = 10.0


class Facts:
    """Hands outcomes to the latency corrections, the metrics and the request log."""

    def __init__(
        self,
        corrections: Corrections,
        metrics: Metrics,
        log: RequestLog,
        mark_stalled: Callable[[str, float, float], None],
    ) -> None:
        self._corrections = corrections
        self._metrics = metrics
        self._log = log
        self._mark_stalled = mark_stalled

    def attempt(self, choice: Choice, attempt: Attempt, now_s: float) -> None:
        """One attempt ended or was given up."""
        outcome = attempt.outcome
        failure = outcome.result if outcome is not None and isinstance(outcome.result, Failure) else None
        if failure is not None and failure.cause is Cause.STALLED:
            self._mark_stalled(attempt.node_id, attempt.waiting_since_s, STALL_PAUSE_S)
        label = "cancelled" if outcome is None else failure.cause.value if failure else "finished"
        self._metrics.attempts.labels(choice.node.binding.tier.value, label).inc()
        if failure is not None and failure.cause in (Cause.OVERLOADED, Cause.DRAINING, Cause.INVALID_INPUT):
            return  # nothing was computed, so nothing was learned about speed
        self._corrections.record(_observation(choice, attempt, now_s, failure))

    def finished(self, run: RequestRun, finished: Finished) -> None:
        row, t, usage = run.row, finished.timings, finished.usage
        row.ttft_ms, row.tpot_ms, row.total_ms = t.ttft_ms, t.tpot_ms, t.total_ms
        row.prompt_tokens, row.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        row.cached_tokens, row.budget = usage.cached_tokens, finished.budget.value
        m, tier = self._metrics, row.tier
        m.ttft.labels(tier).observe(t.ttft_ms / 1000)
        if usage.completion_tokens > 1:
            m.tpot.labels(tier).observe(t.tpot_ms / 1000)
        m.duration.labels(tier).observe(t.total_ms / 1000)
        if row.predicted_ttft_ms > 0:
            m.ttft_error.labels(tier).observe(t.ttft_ms / row.predicted_ttft_ms)
        m.tokens.labels(tier, "prompt").inc(usage.prompt_tokens)
        m.tokens.labels(tier, "cached").inc(usage.cached_tokens)
        m.tokens.labels(tier, "completion").inc(usage.completion_tokens)
        if row.budget != "none":
            m.budgets.labels(tier, row.budget).inc()

    def turned_away(self, request: GenerateRequest, client: Client, error: ServeError) -> None:
        """A request that never became a run: no room, a duplicate, or input that is not allowed."""
        row = RequestRow(
            request.request_id,
            client.tenant,
            request.model,
            request.data_class,
            error.code.value,
            error.reason,
        )
        self._metrics.requests.labels("none", row.code, row.reason).inc()
        self._log.write(row)

    def refused(self, run: RequestRun, error: ServeError) -> None:
        run.row.code, run.row.reason = error.code.value, error.reason

    def ended(self, run: RequestRun, now_s: float) -> None:
        """Last word on a request, whatever happened."""
        row = run.row
        row.total_ms = row.total_ms or (now_s - run.arrived_s) * 1000
        row.completion_tokens = row.completion_tokens or run.tokens
        self._metrics.requests.labels(row.tier or "none", row.code, row.reason).inc()
        self._log.write(row)


def _observation(choice: Choice, attempt: Attempt, now_s: float, failure: Failure | None) -> Observation:
    p, stamps, outcome = choice.prediction, attempt.first_token, attempt.outcome
    waited_ms = (now_s - attempt.started_s) * 1000
    ttft_ms = None if attempt.ttft_s is None else attempt.ttft_s * 1000
    decode_ms = None
    if ttft_ms is not None and attempt.tokens >= 2 and not attempt.consumer_was_slow:
        decode_ms = (waited_ms - ttft_ms) / (attempt.tokens - 1)
    return Observation(
        node_id=attempt.node_id,
        variant_digest=choice.variant.digest,
        hardware_class=choice.node.announcement.hardware_class,
        predicted_ttft_ms=p.ttft_ms,
        predicted_tpot_ms=p.tpot_ms,
        actual_ttft_ms=waited_ms if ttft_ms is None else ttft_ms,
        actual_tpot_ms=decode_ms,
        queue_ms=stamps.queue_ms if stamps else 0.0,
        prefill_ms=stamps.prefill_ms if stamps else 0.0,
        network_ms=p.network_ms,
        ttft_factor=p.ttft_factor,
        queue_factor=p.queue_factor,
        predicted_queue_ms=p.queue_ms,
        predicted_prefill_ms=p.prefill_ms,
        predicted_fresh_share=p.fresh_share,
        tpot_factor=p.tpot_factor,
        cached_tokens=stamps.cached_tokens if stamps else 0,
        batch_size=stamps.batch_size if stamps else 0,
        prompt_tokens=stamps.prompt_tokens if stamps else 0,
        output_tokens=attempt.tokens,
        outcome=Outcome.CANCELLED if outcome is None else Outcome.FAILED if failure else Outcome.FINISHED,
        censored=ttft_ms is None,
    )
