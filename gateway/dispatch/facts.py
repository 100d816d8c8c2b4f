"""Facts out: what each attempt and each request taught. The only place that writes observations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from gateway.dispatch.attempt import Attempt
from gateway.dispatch.caller import Client
from gateway.dispatch.run import RequestRun
from gateway.telemetry import Metrics, RequestLog, RequestRow
from tidegate.routing.crowding import Crowding
from tidegate.routing.domain import (
    BudgetOutcome,
    Cause,
    Failure,
    Finished,
    FinishReason,
    FirstToken,
    GenerateRequest,
    InputKind,
    ServeError,
    Tier,
    Work,
)
from tidegate.routing.margin import Margins
from tidegate.routing.observation import Observation, Outcome, Stage
from tidegate.routing.plan import Choice

# How long a node that let an attempt stand still gets no new work, in seconds.
STALL_PAUSE_S = 10.0


# An attempt without its first token after this many times its predicted p95 is news, and again each time
# that it has waited as many times longer.
LATE_TIMES = 1.5
MIN_LATE_MS = 100.0
# A prompt has no more tokens than bytes, but for what a chat template adds.
TEMPLATE_TOKENS = 4096

_NOTHING_COMPUTED = (Cause.OVERLOADED, Cause.DRAINING, Cause.INVALID_INPUT, Cause.CONTEXT_LENGTH)
_TOO_LATE = (Cause.STALLED, Cause.DEADLINE, Cause.ENGINE_HUNG)


class Learner(Protocol):
    """Implemented by tidegate.routing.latency.LearnedLatency."""

    def record(self, observation: Observation) -> None: ...


@dataclass(slots=True)
class _Open:
    """An attempt that still runs. `late_s` is when its first token is overdue, on the dispatcher's clock."""

    choice: Choice
    attempt: Attempt
    late_s: float
    told: bool = False


class Facts:
    """Hands outcomes to the latency model, the metrics and the request log."""

    def __init__(
        self,
        model: Learner,
        metrics: Metrics,
        log: RequestLog,
        mark_stalled: Callable[[str, float, float], None],
        margins: Margins | None = None,
        crowding: Crowding | None = None,
    ) -> None:
        self._model = model
        self._metrics = metrics
        self._log = log
        self._mark_stalled = mark_stalled
        self._open: dict[int, _Open] = {}
        self.margins = margins or Margins()
        self.crowding = crowding or Crowding()

    def began(self, choice: Choice, attempt: Attempt) -> None:
        """One attempt was sent."""
        if attempt.work.input_kind is InputKind.EMBED:
            return  # other steps than an answer's: they teach nothing about its speed
        late_ms = max(choice.prediction.ttft_p95_ms, MIN_LATE_MS) * LATE_TIMES
        self._open[id(attempt)] = _Open(choice, attempt, attempt.started_s + late_ms / 1000)

    def look(self, now_s: float) -> None:
        """What the attempts that still run teach; call it a few times a second.

        A first token is not kept until the answer ends, and one that does not come is news long before
        anybody gives up: a node that has become slow must not go on winning meanwhile.
        """
        for open_ in self._open.values():
            attempt = open_.attempt
            if attempt.ttft_s is not None:
                if not open_.told:
                    open_.told = True
                    self._model.record(_observation(open_.choice, attempt, now_s, Stage.FIRST_TOKEN))
            elif now_s >= open_.late_s:
                open_.late_s = now_s + (now_s - attempt.started_s) * (LATE_TIMES - 1.0)
                self._model.record(_observation(open_.choice, attempt, now_s, Stage.WAITING))

    def attempt(self, choice: Choice, attempt: Attempt, now_s: float) -> None:
        """One attempt ended or was given up."""
        open_ = self._open.pop(id(attempt), None)
        outcome = attempt.outcome
        failure = outcome.result if outcome is not None and isinstance(outcome.result, Failure) else None
        if failure is not None and failure.cause is Cause.STALLED:
            self._mark_stalled(attempt.node_id, attempt.waiting_since_s, STALL_PAUSE_S)
        label = "cancelled" if outcome is None else failure.cause.value if failure else "finished"
        self._metrics.attempts.labels(choice.node.binding.tier.value, label).inc()
        if failure is not None and failure.cause in _NOTHING_COMPUTED:
            return  # nothing was computed, so nothing was learned about speed
        if attempt.work.input_kind is InputKind.EMBED:
            return
        observation = _observation(choice, attempt, now_s, Stage.ENDED)
        told = open_ is not None and open_.told
        self._model.record(replace(observation, first_token_told=True) if told else observation)
        if attempt.ttft_s is not None:
            kept = attempt.ttft_s * 1000 <= choice.prediction.ttft_p95_ms
            self._metrics.ttft_p95.labels(choice.node.binding.tier.value, "yes" if kept else "no").inc()

    def finished(self, run: RequestRun, finished: Finished) -> None:
        row, t, usage = run.row, finished.timings, finished.usage
        row.ttft_ms, row.tpot_ms, row.total_ms = t.ttft_ms, t.tpot_ms, t.total_ms
        row.prompt_tokens, row.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        row.cached_tokens, row.budget = usage.cached_tokens, finished.budget.value
        row.cost = row.cost_per_mtoken * (usage.prompt_tokens + usage.completion_tokens) / 1e6
        m, tier = self._metrics, row.tier
        m.cost.labels(tier).inc(row.cost)
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
            met = finished.budget is BudgetOutcome.MET
            if met or _first_token_missed(run, t.ttft_ms) or not run.consumer_was_slow:
                self._learn_margin(run, met=met)

    def _learn_margin(self, run: RequestRun, *, met: bool) -> None:
        """From requests that were expected to meet their budgets and went where they were to go. What their
        own readers missed is nobody's lesson."""
        row = run.row
        if row.attempts == 1 and not row.at_risk and row.tier:
            self.margins.record(run.query, Tier(row.tier), met=met)

    def fade(self, elapsed_s: float) -> None:
        """Time went by."""
        self.margins.decay(elapsed_s)
        for tier in Tier:
            self._metrics.margin.labels(tier.value).set(1.0 - 1.0 / self.margins.largest(tier))

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
        if row.budget == "none" and _gave_up_late(run, now_s):
            self._learn_margin(run, met=False)
        row.total_ms = row.total_ms or (now_s - run.arrived_s) * 1000
        row.completion_tokens = row.completion_tokens or run.tokens
        self._metrics.requests.labels(row.tier or "none", row.code, row.reason).inc()
        self._log.write(row)


def _first_token_missed(run: RequestRun, ttft_ms: float) -> bool:
    """Of all parts of a budget the one that no reader can miss."""
    return run.query.budget.ttft_ms is not None and ttft_ms > run.query.budget.ttft_ms


def _gave_up_late(run: RequestRun, now_s: float) -> bool:
    """Whether it ended without its answer, too late for its budget: no other end than a miss was possible."""
    budget, waited_ms = run.query.budget, (now_s - run.arrived_s) * 1000
    if run.row.code not in ("cancelled", "deadline_exceeded"):
        return False
    if run.first_token_s is None and _first_token_missed(run, waited_ms):
        return True
    return budget.total_ms is not None and waited_ms > budget.total_ms and not run.consumer_was_slow


def _observation(choice: Choice, attempt: Attempt, now_s: float, stage: Stage) -> Observation:
    outcome, expected_wake_ms = attempt.outcome, choice.prediction.wake_ms
    waited_ms = (now_s - attempt.started_s) * 1000
    ttft_ms = None if attempt.ttft_s is None else attempt.ttft_s * 1000
    first_ms = waited_ms if ttft_ms is None else ttft_ms
    stamps = attempt.first_token and _credible(attempt.first_token, attempt.work, first_ms)
    # A model that had to be loaded says nothing of the node's speed, where it was known to sleep: of any
    # other node it would be an excuse that hides how slow it is.
    wake_ms = stamps.wake_ms if stamps and expected_wake_ms > 0.0 else expected_wake_ms
    prediction = choice.prediction.awake()
    # Nor does it make a node look faster than it was expected to be.
    least_ms = 0.0 if ttft_ms is None else min(ttft_ms, prediction.ttft_ms)
    decode_ms = None
    if stage is Stage.ENDED and ttft_ms is not None and not attempt.consumer_was_slow:
        decode_ms = (waited_ms - ttft_ms) / (attempt.tokens - 1) if attempt.tokens > 1 else None
    return Observation(
        node_id=attempt.node_id,
        variant_digest=choice.variant.digest,
        model=choice.variant.model,
        hardware_class=choice.node.announcement.hardware_class,
        boot_id=choice.node.announcement.boot_id,
        prediction=prediction,
        stage=stage,
        actual_ttft_ms=max(least_ms, first_ms - wake_ms),
        actual_tpot_ms=decode_ms,
        queue_ms=stamps.queue_ms if stamps else 0.0,
        prefill_ms=stamps.prefill_ms if stamps else 0.0,
        cached_tokens=stamps.cached_tokens if stamps else 0,
        prompt_tokens=stamps.prompt_tokens if stamps else 0,
        batch_size=stamps.batch_size if stamps else 0,
        output_tokens=attempt.tokens,
        max_tokens=attempt.work.max_tokens,
        stopped=outcome is not None and outcome.result is FinishReason.STOP,
        outcome=_ended(attempt) if stage is Stage.ENDED else Outcome.RUNNING,
        censored=ttft_ms is None,
    )


def _credible(stamps: FirstToken, work: Work, first_ms: float) -> FirstToken:
    """A node's stamps as far as they can be true: its class learns from them too. Parts of the time to the
    first token are within it together, and the prompt has no more tokens than it can have."""
    prefill_ms = _within(stamps.prefill_ms, first_ms)
    queue_ms = _within(stamps.queue_ms, first_ms - prefill_ms)
    most = len(work.input) + len(work.replay_token_ids) + TEMPLATE_TOKENS
    prompt_tokens = int(_within(stamps.prompt_tokens, most))
    return FirstToken(
        queue_ms=queue_ms,
        prefill_ms=prefill_ms,
        cached_tokens=int(_within(stamps.cached_tokens, prompt_tokens)),
        batch_size=stamps.batch_size,
        prompt_tokens=prompt_tokens,
        wake_ms=_within(stamps.wake_ms, first_ms - prefill_ms - queue_ms),
    )


def _within(value: float, most: float) -> float:
    """What is no number is nothing."""
    return min(value, most) if value > 0.0 and most > 0.0 else 0.0


def _ended(attempt: Attempt) -> Outcome:
    if attempt.outcome is None:
        return Outcome.CANCELLED
    if not isinstance(attempt.outcome.result, Failure):
        return Outcome.FINISHED
    return Outcome.TIMED_OUT if attempt.outcome.result.cause in _TOO_LATE else Outcome.FAILED
