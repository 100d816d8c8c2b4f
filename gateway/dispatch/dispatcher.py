"""The dispatcher: decides, tries, retries before the first token, and reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field, replace
from functools import partial

from gateway.dispatch.admission import Admission
from gateway.dispatch.attempt import Attempt, AttemptOutcome, StallLimits, Upstream
from gateway.dispatch.audit import Audit
from gateway.dispatch.caller import Client
from gateway.dispatch.deciding import Decider
from gateway.dispatch.errors import RETRYABLE, SUSPICIOUS, deadline_error, failure_error
from gateway.dispatch.facts import Facts
from gateway.dispatch.intake import Intake
from gateway.dispatch.levels import DataClasses
from gateway.dispatch.line import Line, Turn
from gateway.dispatch.outcomes import Outcomes
from gateway.dispatch.resume import ResumeTokens
from gateway.dispatch.run import RequestRun, budget_outcome, usage_of
from gateway.dispatch.shadow import Shadows
from gateway.state import Fleet, Sessions
from gateway.telemetry import Metrics, RequestLog
from tidegate.routing import explain
from tidegate.routing.domain import (
    Accepted,
    AttemptKey,
    Cause,
    Chunk,
    Failure,
    Finished,
    GenerateEvent,
    GenerateRequest,
    InputKind,
    Restarted,
    Route,
    SequenceOutput,
    ServeError,
    SessionHint,
    Snapshot,
    Work,
)
from tidegate.routing.herding import most_ahead
from tidegate.routing.latency import LatencyModel
from tidegate.routing.plan import Choice, Plan, Refusal
from tidegate.routing.policy import Policy
from tidegate.routing.quality import QualityModel, RankedQuality

# Long enough for a work to be out of the process. An idle event loop makes a whole millisecond of it.
SENDING_S = 0.0005


@dataclass(frozen=True, slots=True)
class DispatchOptions:
    """`max_attempts` bounds tries per request; `credits` is how many chunks a node may send ahead;
    `explored_share` of requests go to another node that would do as well, `log_share` of decisions
    are logged.
    """

    max_attempts: int = 3
    explored_share: float = 0.01
    credits: int = 64
    log_share: float = 0.0
    stall: StallLimits = field(default_factory=StallLimits)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a request would get now: a plan or a refusal, and how long deciding took."""

    result: Plan | Refusal
    decision_ms: float


class Dispatcher:
    """Serves requests on the fleet. Everything it depends on is given to it.

    `clock` returns seconds, `rng` numbers in [0, 1), `new_token` unguessable strings.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        upstream: Upstream,
        intake: Intake,
        sessions: Sessions,
        classes: DataClasses,
        policy: Policy,
        model: LatencyModel,
        facts: Facts,
        metrics: Metrics,
        log: RequestLog,
        admission: Admission,
        line: Line,
        options: DispatchOptions,
        clock: Callable[[], float],
        rng: Callable[[], float],
        new_token: Callable[[], str],
        resume_tokens: ResumeTokens,
        outcomes: Outcomes | None = None,
        quality_of: Callable[[Snapshot], QualityModel] = RankedQuality,
        ranked_of: Callable[[Snapshot], RankedQuality] = RankedQuality,
    ) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._intake = intake
        self._sessions = sessions
        self._audit = Audit(classes, log)
        self._facts = facts
        self._metrics = metrics
        self._admission = admission
        self._line = line
        self._options = options
        self._clock = clock
        self._new_token = new_token
        self._resume_tokens = resume_tokens
        self._outcomes = outcomes or Outcomes()
        self._ranked_of = ranked_of
        self._decider = Decider(
            fleet=fleet,
            policy=policy,
            model=model,
            facts=facts,
            metrics=metrics,
            audit=self._audit,
            log=log,
            clock=clock,
            rng=rng,
            quality_of=quality_of,
            waits=lambda: line.is_open,
            explored_share=options.explored_share,
            log_share=options.log_share,
        )
        self._shadows = Shadows(
            self._decider.ask, self._attempt, self._audit.decided, facts, metrics, log, clock, self._paired
        )

    def explain(self, request: GenerateRequest, client: Client) -> Decision:
        """The decision for this request now, and nothing else. Raises ServeError for bad input."""
        started_s = self._clock()
        result = self._decider.look(self._intake.begin(request, client), frozenset())
        return Decision(result, (self._clock() - started_s) * 1000)

    def route(self, request: GenerateRequest, client: Client) -> tuple[Route, float]:
        """Where this request would go now, and the ms it took to decide. Raises ServeError for a refusal.

        Somebody may act on it, so it is audited as a decision is.
        """
        started_s = self._clock()
        try:
            run = self._intake.begin(request, client)
        except ServeError:
            self._audit.turned_away(request, client, self._intake.session_class(request, client))
            raise
        result = self._decider.look(run, frozenset())
        taken_s = self._clock() - started_s
        self._metrics.decision.observe(taken_s)
        if isinstance(result, Refusal):
            self._audit.decided(run, "refused", None)
            raise explain.refusal_error(result)
        self._audit.decided(run, "told", result.first)
        return explain.route(result), taken_s * 1000

    async def close(self) -> None:
        """Ends what runs beside the requests."""
        await self._shadows.close()

    def feedback(self, request_id: str, client: Client, *, worse: bool, variant: str = "") -> None:
        """Keeps a verdict on an answer, or on that of `variant` of a pair. Raises ServeError where none are
        kept, and for verdicts that come too fast."""
        self._outcomes.verdict(request_id, client, worse=worse, variant=variant)

    def _paired(self, run: RequestRun, served: Choice, copied: Choice) -> None:
        self._outcomes.paired(run, served, copied, self._ranked_of(self._fleet.snapshot()).is_best)

    async def generate(self, request: GenerateRequest, client: Client) -> AsyncGenerator[GenerateEvent, None]:
        """Streams the answer; closing the iterator frees the node. Raises ServeError."""
        with ExitStack() as held:
            try:
                held.enter_context(
                    self._admission.admit(client.tenant, request.request_id, _prompt_bytes(request))
                )
                run = self._intake.begin(request, client)
            except ServeError as error:
                self._facts.turned_away(request, client, error)
                self._audit.turned_away(request, client, self._intake.session_class(request, client))
                raise
            if run.session:
                self._sessions.put(run.session, None, run.data_class)
            # Unique on every node, whatever ids clients choose.
            run.work_id = f"{request.request_id}.{self._new_token()[:12]}"
            self._metrics.in_flight.inc()
            run.row.code = "internal"  # unless something else is said before the end
            try:
                async with aclosing(self._serve(run)) as events:
                    async for event in events:
                        yield event
            except ServeError as error:
                self._facts.refused(run, error)
                raise
            except (GeneratorExit, asyncio.CancelledError):
                if run.row.code != "ok":
                    run.row.code = "cancelled"
                raise
            finally:
                self._metrics.in_flight.dec()
                self._facts.ended(run, self._clock())

    async def _serve(self, run: RequestRun) -> AsyncGenerator[GenerateEvent, None]:
        """Attempts, one after the other, until one has begun to answer.

        An attempt is opened towards the client with its first output (or at once with early_accept): by
        Accepted, or by Restarted when the client was told of an earlier one.
        """
        tried: frozenset[str] = frozenset()
        full: frozenset[str] = frozenset()
        failed: ServeError | None = None
        told: ServeError | None = None
        while True:
            plan, decision_ms = self._decide(run, tried, full, failed)
            turn = None if self._line.at_once(plan) else await self._turn(run, plan, tried)
            plan = plan if turn is None else turn.plan
            choice = plan.first
            self._audit.decided(run, "routed", choice)
            run.row.attempts += 1
            attempt = self._attempt(run, plan)
            attempt.open()
            self._facts.began(choice, attempt)
            self._decider.routed(run, plan, decision_ms)
            try:
                opened = run.request.early_accept
                if not opened:
                    # What follows is in no hurry, and would hold up by half a millisecond what was just sent.
                    await asyncio.sleep(SENDING_S)
                opening = self._opening(run, plan, decision_ms, told)
                if opened:
                    yield opening
                async with aclosing(attempt.outputs()) as outputs:
                    async for output in outputs:
                        chunk = self._chunk(run, output)  # made first: what its reader takes is not its time
                        if not opened:
                            opened = True
                            yield opening
                        yield chunk
            finally:
                attempt.close()
                self._line.notify()
                run.consumer_was_slow = attempt.consumer_was_slow
                self._facts.attempt(choice, attempt, self._clock())
            assert attempt.outcome is not None
            if not isinstance(attempt.outcome.result, Failure):
                if not opened:  # an empty answer is an answer
                    yield opening
                finished = self._finished(run, choice, attempt.outcome)
                usage = finished.usage
                self._line.finished(turn, usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens)
                self._shadows.start(run, choice)
                yield finished
                return
            failed = self._failed(run, choice, attempt.outcome.result)
            told = failed if opened else told
            if attempt.outcome.result.cause is Cause.OVERLOADED:
                full |= {choice.node.node_id}
            else:
                tried |= {choice.node.node_id}

    def _decide(
        self, run: RequestRun, tried: frozenset[str], full: frozenset[str], failed: ServeError | None
    ) -> tuple[Plan, float]:
        """The plan, and the ms it took. Raises ServeError when no node will do, or the earlier attempt's
        failure when none is left."""
        if run.deadline_s is not None and self._clock() >= run.deadline_s:
            self._audit.decided(run, "refused", None)
            raise deadline_error()
        result, decision_ms = self._decider.decide(run, tried, full)
        if isinstance(result, Refusal):
            self._decider.refused(run, result)
            raise failed or explain.refusal_error(result)
        return result, decision_ms

    async def _turn(self, run: RequestRun, plan: Plan, tried: frozenset[str]) -> Turn:
        """Waits for room on a node that will do. Raises ServeError where that cannot be in time."""
        started_s = self._clock()
        try:
            turn = await self._line.turn(plan, run.deadline_s, partial(self._decider.look, run, tried))
        finally:
            run.row.waited_ms += (self._clock() - started_s) * 1000
        if isinstance(turn, Refusal):
            self._decider.refused(run, turn)
            raise explain.refusal_error(turn)
        return turn

    def _attempt(self, run: RequestRun, plan: Plan) -> Attempt:
        choice = plan.first
        request, now_s = run.request, self._clock()
        ttft_ms = request.budget.ttft_ms
        elapsed_ms = (now_s - run.arrived_s) * 1000
        work = Work(
            key=AttemptKey(run.work_id, run.row.attempts),
            tenant=run.client.tenant,
            variant_digest=choice.variant.digest,
            input_kind=_input_kind(request),
            input=run.input,
            sampling=request.sampling,
            max_tokens=len(request.embed) or run.query.max_tokens,
            stop=request.stop,
            prefix_hashes=run.query.analysis.prefix_hashes,
            remaining_ms=None if run.deadline_s is None else max(1.0, (run.deadline_s - now_s) * 1000),
            ttft_remaining_ms=None if ttft_ms is None else max(1.0, ttft_ms - elapsed_ms),
            priority=request.priority,
            credits=self._options.credits,
            adapter=request.adapter,
            most_ahead=most_ahead(plan) if run.row.attempts < self._options.max_attempts else None,
            format=request.format,
            top_logprobs=request.top_logprobs,
            data_class=run.data_class,
        )
        return Attempt(
            self._upstream,
            choice.node.node_id,
            work,
            clock=self._clock,
            limits=self._options.stall,
            predicted_ttft_ms=choice.prediction.ttft_ms,
            deadline_s=run.deadline_s,
            last_output_s=lambda: self._fleet.last_output_s(choice.node.node_id),
        )

    def _opening(
        self, run: RequestRun, plan: Plan, decision_ms: float, told: ServeError | None
    ) -> Accepted | Restarted:
        """`told` is how the earlier attempt ended that the client knows of, if it knows of one."""
        route = explain.route(plan, judged=run.request.explain)
        if told is not None:
            return Restarted(attempt_no=run.row.attempts, cause=told.reason, route=route)
        reasons = explain.explanation(plan, decision_ms) if run.request.explain else None
        token = self._resume_tokens.issue(run.client.tenant, run.request.request_id, self._new_token())
        return Accepted(route=route, explanation=reasons, resume_token=token)

    def _chunk(self, run: RequestRun, output: SequenceOutput) -> Chunk:
        if run.first_token_s is None and output.count:
            run.first_token_s = self._clock()
        run.tokens += output.count
        return Chunk.of(output, run.row.attempts)

    def _finished(self, run: RequestRun, choice: Choice, outcome: AttemptOutcome) -> Finished:
        assert not isinstance(outcome.result, Failure)
        timings = run.timings(outcome, self._clock())
        usage = usage_of(outcome)
        if run.request.embed:
            usage = replace(usage, completion_tokens=0)
        finished = Finished(
            reason=outcome.result,
            usage=usage,
            timings=timings,
            budget=budget_outcome(run.request.budget, timings),
            attempts=run.row.attempts,
            feedback_wanted=self._outcomes.answered(run, choice),
        )
        if run.session:
            warm = usage.prompt_tokens + usage.completion_tokens
            node, blocks = choice.node.announcement, len(run.query.analysis.prefix_hashes)
            hint = SessionHint(node.node_id, choice.variant.digest, warm, node.boot_id, blocks)
            self._sessions.put(run.session, hint, run.data_class)
        run.row.code = "ok"
        self._facts.finished(run, finished)
        return finished

    def _failed(self, run: RequestRun, choice: Choice, failure: Failure) -> ServeError:
        """The error to go on with when another try is allowed; raises it when not."""
        error = failure_error(failure, node_name=choice.node.announcement.name, tokens=run.tokens)
        run.suspicions += failure.cause in SUSPICIOUS
        may_retry = failure.cause in RETRYABLE and run.tokens == 0 and run.suspicions < 2
        if not may_retry or run.row.attempts >= self._options.max_attempts:
            raise error
        return error


def _prompt_bytes(request: GenerateRequest) -> int:
    """At least the characters of it; what a prompt holds of the memory while it is served."""
    texts = (request.prompt or "", *request.embed, *(message.content for message in request.messages))
    return sum(map(len, texts))


def _input_kind(request: GenerateRequest) -> InputKind:
    if request.embed:
        return InputKind.EMBED
    return InputKind.CHAT if request.prompt is None else InputKind.TEXT
