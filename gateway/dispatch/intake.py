"""From a request to the query routing decides on: the operator's levels, data class, session, analysis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from gateway.dispatch.caller import Client
from gateway.dispatch.levels import DataClasses, Levels
from gateway.dispatch.run import RequestRun
from gateway.state import Sessions
from gateway.telemetry import RequestRow
from tidegate.routing.domain import (
    Analysis,
    Code,
    GenerateRequest,
    RouteQuery,
    ServeError,
    needed_capabilities,
)
from tidegate.routing.embedding import pack_texts
from tidegate.routing.prefix import canonical_bytes

# What a node's link takes. Escaping in the canonical form can make an input larger than its request was.
MAX_INPUT_BYTES = 16 * 1024 * 1024
# All stop strings together: they travel in the head of the work, which is never cut into fragments.
MAX_STOP_CHARS = 4096


class PromptAnalyzer(Protocol):
    """Implemented by gateway.analysis.Analyzer."""

    def analyze(self, request: GenerateRequest) -> Analysis: ...


class Intake:
    """Raises ServeError(INVALID_ARGUMENT) for what the operator or the node link does not allow."""

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
            request.data_class, client.class_floor, self.session_class(request, client)
        )
        engine_input = _engine_input(request)
        resolved = levels.names.resolve(request.model, request.request_id, session)
        share = request.budget.target_share
        analysis, fit_tokens = self._analyze(request)
        query = RouteQuery(
            model=resolved.targets[0],
            named=resolved.told(0),
            analysis=analysis,
            max_tokens=1 if request.embed else max_tokens,
            fit_tokens=fit_tokens,
            budget=request.budget,
            target_share=levels.target_share if share is None else share,
            min_p_good=levels.min_p_good if request.min_p_good is None else request.min_p_good,
            placement=request.placement,
            class_rule=self._classes.rule(data_class),
            on_miss=request.on_miss,
            session=self._sessions.hint(session) if session else None,
            priority=request.priority,
            tenant=client.tenant,
            needs=needed_capabilities(request),
        )
        return RequestRun(
            request=request,
            client=client,
            query=query,
            input=engine_input,
            data_class=data_class,
            session=session,
            arrived_s=now_s,
            deadline_s=None if request.remaining_ms is None else now_s + request.remaining_ms / 1000,
            resolved=resolved,
            row=RequestRow(request.request_id, client.tenant, request.model, data_class),
        )

    def session_class(self, request: GenerateRequest, client: Client) -> str:
        """The strictest data class that the request's session had, "" without one."""
        if not request.session_id:
            return ""
        return self._sessions.data_class(self._sessions.name(client.tenant, request.session_id))

    def _analyze(self, request: GenerateRequest) -> tuple[Analysis, int | None]:
        """And what the context must hold, where texts are embedded: the longest of them."""
        if not request.embed:
            return self._analyzer.analyze(request), None
        counted = [self._analyzer.analyze(replace(request, embed=(), prompt=text)) for text in request.embed]
        tokens = [analysis.prompt_tokens for analysis in counted]
        return replace(counted[0], prompt_tokens=sum(tokens), prefix_hashes=()), max(tokens)


def _engine_input(request: GenerateRequest) -> bytes:
    """What the engine reads; refused where the way to a node could not carry it."""
    if sum(map(len, request.stop)) > MAX_STOP_CHARS:
        raise _too_long("stop", f"stop strings are longer than {MAX_STOP_CHARS} characters together")
    if request.embed:
        data = pack_texts(request.embed)
    else:
        data = canonical_bytes(request.messages) if request.prompt is None else request.prompt.encode()
    if len(data) > MAX_INPUT_BYTES:
        raise _too_long("input", f"the input is {len(data)} bytes, above the limit of {MAX_INPUT_BYTES}")
    return data


def _too_long(param: str, message: str) -> ServeError:
    return ServeError(Code.INVALID_ARGUMENT, message, reason="INPUT_TOO_LONG", param=param)
