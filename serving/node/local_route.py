"""What a node expects of a request asked at itself: the gateway's own policy on a fleet of one."""

from __future__ import annotations

from dataclasses import replace

from tidegate.routing.domain import (
    TARGET_SHARE,
    Analysis,
    Announcement,
    Binding,
    Code,
    GenerateRequest,
    Health,
    NodeLoad,
    NodeState,
    OnMiss,
    Route,
    RouteQuery,
    ServeError,
    Snapshot,
    Tier,
    Work,
)
from tidegate.routing.explain import refusal_error
from tidegate.routing.latency import BYTES_PER_TOKEN, LearnedLatency
from tidegate.routing.plan import Refusal
from tidegate.routing.policy import route

WHY = "asked at the node itself"


def local_route(
    request: GenerateRequest, work: Work, announcement: Announcement, load: NodeLoad, tier: Tier
) -> Route:
    """The route with its predictions. Raises ServeError where the request would rather be refused than miss.

    A node alone cannot say how good its answers are: a quality level is at risk, or refused with REJECT.
    Data classes limit where data goes; here it stays.
    """
    wants_quality = bool(request.min_p_good)
    if wants_quality and request.on_miss is OnMiss.REJECT:
        raise ServeError(
            Code.FAILED_PRECONDITION,
            "this node cannot tell how good its answers are: ask a gateway, or drop the quality level",
            reason="QUALITY_UNMEETABLE",
            param="min_p_good",
        )
    # A node that drains or restarts its engine says so itself when it is given the work.
    able = replace(load, ready=True, draining=False)
    state = NodeState(announcement, Binding(tier), able, Health.READY, rtt_ms=0.0)
    variant = next(v for v in announcement.variants if v.digest == work.variant_digest)
    share = request.budget.target_share
    query = RouteQuery(
        model=variant.model,
        # Whether the prompt fits is the engine's to say, with exact numbers.
        analysis=Analysis(_tokens(work, variant.context_tokens), difficulty_of=lambda: 0.0),
        max_tokens=min(work.max_tokens, max(1, variant.context_tokens // 2)),
        budget=request.budget,
        target_share=TARGET_SHARE if share is None else share,
        min_p_good=0.0,
        on_miss=request.on_miss,
    )
    snapshot = Snapshot((state,), {state.node_id: state})
    decided = route(snapshot, query, LearnedLatency(), lambda: 0.0)
    if isinstance(decided, Refusal):
        raise refusal_error(decided)
    choice = decided.first
    found = choice.route(WHY)
    return found if choice.qualified and not wants_quality else replace(found, at_risk=True)


def _tokens(work: Work, context_tokens: int) -> int:
    return max(1, min(len(work.input) // BYTES_PER_TOKEN, context_tokens // 2))
