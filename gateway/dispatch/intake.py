"""From a request to the query routing decides on: the operator's levels, data class, session, analysis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway.dispatch.caller import Client
from gateway.dispatch.levels import DataClasses, Levels
from gateway.dispatch.run import RequestRun
from gateway.state import Sessions
from gateway.telemetry import RequestRow
from tidegate.routing.domain import Analysis, Code, GenerateRequest, RouteQuery, ServeError


class PromptAnalyzer(Protocol):
    """Implemented by gateway.analysis.Analyzer."""

    def analyze(self, request: GenerateRequest) -> Analysis: ...


class Intake:
    """Raises ServeError(INVALID_ARGUMENT) for what the operator does not allow."""

    def __init__(
        self,
        analyzer: PromptAnalyzer,
        sessions: Sessions,
        classes: DataClasses,
        levels: Levels,
        clock: Callable[[], float],
    ) -> None:
        self._analyzer = analyzer
        self._sessions = sessions
        self._classes = classes
        self._levels = levels
        self._clock = clock

    def begin(self, request: GenerateRequest, client: Client) -> RequestRun:
        now_s = self._clock()
        levels = self._levels
        max_tokens = request.max_tokens or levels.max_tokens
        if max_tokens > levels.max_tokens_limit:
            raise ServeError(
                Code.INVALID_ARGUMENT,
                f"max_tokens {max_tokens} is above this gateway's limit of {levels.max_tokens_limit}",
                param="max_tokens",
            )
        session = self._sessions.name(client.tenant, request.session_id) if request.session_id else ""
        data_class = self._classes.effective(
            request.data_class, client.class_floor, self._sessions.data_class(session) if session else ""
        )
        if session:
            self._sessions.put(session, None, data_class)
        model = levels.aliases.get(request.model, request.model) or "auto"
        share = request.budget.target_share
        query = RouteQuery(
            model=model,
            analysis=self._analyzer.analyze(request),
            max_tokens=max_tokens,
            budget=request.budget,
            target_share=levels.target_share if share is None else share,
            min_p_good=levels.min_p_good if request.min_p_good is None else request.min_p_good,
            placement=request.placement,
            class_rule=self._classes.rule(data_class),
            on_miss=request.on_miss,
            session=self._sessions.hint(session) if session else None,
            priority=request.priority,
        )
        return RequestRun(
            request=request,
            client=client,
            query=query,
            data_class=data_class,
            session=session,
            arrived_s=now_s,
            deadline_s=None if request.remaining_ms is None else now_s + request.remaining_ms / 1000,
            row=RequestRow(request.request_id, client.tenant, request.model, data_class),
        )
