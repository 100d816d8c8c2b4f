"""The audit of limited data classes: one line per decision on such data, whatever became of the request."""

from __future__ import annotations

from gateway.dispatch.caller import Client
from gateway.dispatch.levels import DataClasses
from gateway.dispatch.run import RequestRun
from gateway.telemetry import RequestLog
from tidegate.routing.domain import GenerateRequest
from tidegate.routing.plan import Choice


class Audit:
    def __init__(self, classes: DataClasses, log: RequestLog) -> None:
        self._classes = classes
        self._log = log

    def decided(self, run: RequestRun, decision: str, choice: Choice | None) -> None:
        """`choice` None: it went nowhere."""
        self._write(run.request.request_id, run.client, run.data_class, decision, choice)

    def turned_away(self, request: GenerateRequest, client: Client, session_class: str) -> None:
        """A request that never became a run. What nobody knows of its class is no class."""
        names = (request.data_class, client.class_floor, session_class)
        known = [name if self._classes.knows(name) else "" for name in names]
        self._write(request.request_id, client, self._classes.effective(*known), "refused", None)

    def _write(
        self, request_id: str, client: Client, data_class: str, decision: str, choice: Choice | None
    ) -> None:
        if self._classes.is_limited(data_class):
            self._log.audit(
                request_id=request_id,
                tenant=client.tenant,
                data_class=data_class,
                decision=decision,
                node="" if choice is None else choice.node.announcement.name,
                tier="" if choice is None else choice.node.binding.tier.value,
            )
