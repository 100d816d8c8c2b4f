"""One request's decision: the policy is asked on the last snapshot; what is worth knowing of it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gateway.dispatch.audit import Audit
from gateway.dispatch.facts import Facts
from gateway.dispatch.run import RequestRun
from gateway.state import Fleet
from gateway.telemetry import Metrics, RequestLog
from tidegate.routing import explain
from tidegate.routing.domain import RouteQuery, Snapshot
from tidegate.routing.exploring import explored
from tidegate.routing.latency import LatencyModel
from tidegate.routing.naming import first_that_serves
from tidegate.routing.plan import Plan, Refusal
from tidegate.routing.policy import Policy
from tidegate.routing.quality import QualityModel


class Decider:
    """`clock` returns seconds, `rng` numbers in [0, 1). `waits` says whether requests may wait for room,
    `explored_share` of decisions go to another node that would do as well, `log_share` of them are logged."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        policy: Policy,
        model: LatencyModel,
        facts: Facts,
        metrics: Metrics,
        audit: Audit,
        log: RequestLog,
        clock: Callable[[], float],
        rng: Callable[[], float],
        quality_of: Callable[[Snapshot], QualityModel],
        waits: Callable[[], bool],
        explored_share: float,
        log_share: float,
    ) -> None:
        self._fleet = fleet
        self._policy = policy
        self._model = model
        self._facts = facts
        self._metrics = metrics
        self._audit = audit
        self._log = log
        self._clock = clock
        self._rng = rng
        self._quality_of = quality_of
        self._waits = waits
        self._explored_share = explored_share
        self._log_share = log_share

    # --- deciding -----------------------------------------------------------------------------------

    def decide(
        self, run: RequestRun, tried: frozenset[str], full: frozenset[str]
    ) -> tuple[Plan | Refusal, float]:
        """For an attempt, and the ms it took.

        Those that were `full` come last: they have tried nothing, and can be waited for.
        """
        started_s = self._clock()
        result = self.look(run, tried | full)
        if full and isinstance(result, Refusal) and self._waits():
            result = self.look(run, tried)
        if isinstance(result, Plan):
            result = explored(result, self._rng, self._explored_share)
        taken_s = self._clock() - started_s
        self._metrics.decision.observe(taken_s)
        return result, taken_s * 1000

    def look(self, run: RequestRun, tried: frozenset[str]) -> Plan | Refusal:
        """What would be decided now."""
        query = replace(
            run.query,
            excluded=tried,
            elapsed_ms=(self._clock() - run.arrived_s) * 1000,
            margins=self._facts.margins.of(run.query),
            longest_ms=self._facts.crowding.longest_ms(run.query.model),
        )
        if len(run.resolved.targets) == 1:
            return self.ask(query)
        return first_that_serves(run.resolved, query, self._ask_crowded)

    def ask(self, query: RouteQuery) -> Plan | Refusal:
        snapshot = self._fleet.snapshot()
        return self._policy.route(snapshot, query, self._model, self._rng, self._quality_of(snapshot))

    def _ask_crowded(self, query: RouteQuery) -> Plan | Refusal:
        """One of several targets: what is learned is kept by model."""
        return self.ask(replace(query, longest_ms=self._facts.crowding.longest_ms(query.model)))

    # --- noting -------------------------------------------------------------------------------------

    def routed(self, run: RequestRun, plan: Plan, decision_ms: float) -> None:
        """The first of the plan got the work."""
        self._facts.crowding.decided(plan)
        row, choice = run.row, plan.first
        row.node, row.tier = choice.node.announcement.name, choice.node.binding.tier.value
        row.predicted_ttft_ms, row.decision_ms = choice.prediction.ttft_ms, decision_ms
        row.predicted_ttft_p95_ms = choice.prediction.ttft_p95_ms
        row.at_risk, row.cost_per_mtoken = not choice.qualified, choice.cost_per_mtoken
        if self._is_logged():
            self._log.decision(run.request.request_id, explain.record(plan))

    def refused(self, run: RequestRun, refusal: Refusal) -> None:
        """No node gets the request, at once or after its wait."""
        self._audit.decided(run, "refused", None)
        if self._is_logged():
            self._log.decision(run.request.request_id, explain.refusal_record(refusal))

    def _is_logged(self) -> bool:
        """Draws whether a decision is among those that are logged."""
        return self._log_share > 0.0 and self._rng() < self._log_share
