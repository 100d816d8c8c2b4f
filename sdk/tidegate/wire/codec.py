"""Conversions of tidegate.gateway.v1: requests, events, routes and explanations.

`encode_x` makes protobuf, `decode_x` makes domain values. Decoding raises ServeError(INVALID_ARGUMENT) with
the offending field in `param`. Conversions of tidegate.common.v1 live in tidegate.wire.common, those of the
fleet (nodes, models) in tidegate.wire.fleet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import (
    Accepted,
    BudgetOutcome,
    Candidate,
    Chunk,
    Explanation,
    Finished,
    GenerateEvent,
    GenerateRequest,
    OnMiss,
    Placement,
    Restarted,
    Route,
)
from tidegate.wire import common
from tidegate.wire.common import decode_enum, invalid
from tidegate.wire.validate import MAX_MESSAGES, check_request, check_request_id

MAX_DIGEST_CHARS = 128

PLACEMENTS: Mapping[Placement, pb.Placement.ValueType] = {
    Placement.ANY: pb.PLACEMENT_ANY,
    Placement.EDGE: pb.PLACEMENT_EDGE,
    Placement.CLOUD: pb.PLACEMENT_CLOUD,
}
ON_MISS: Mapping[OnMiss, pb.OnMiss.ValueType] = {
    OnMiss.BEST_EFFORT: pb.ON_MISS_BEST_EFFORT,
    OnMiss.REJECT: pb.ON_MISS_REJECT,
}
OUTCOMES: Mapping[BudgetOutcome, pb.BudgetOutcome.ValueType] = {
    BudgetOutcome.MET: pb.BUDGET_OUTCOME_MET,
    BudgetOutcome.MISSED: pb.BUDGET_OUTCOME_MISSED,
    BudgetOutcome.NONE: pb.BUDGET_OUTCOME_NONE,
}

# Unset means the default in these three, so clients in other languages need not fill them in.
PLACEMENTS_BACK: Mapping[int, Placement] = {0: Placement.ANY, **{v: k for k, v in PLACEMENTS.items()}}
ON_MISS_BACK: Mapping[int, OnMiss] = {0: OnMiss.BEST_EFFORT, **{v: k for k, v in ON_MISS.items()}}
_OUTCOMES_BACK: Mapping[int, BudgetOutcome] = {0: BudgetOutcome.NONE, **{v: k for k, v in OUTCOMES.items()}}


def encode_generate_request(request: GenerateRequest) -> pb.GenerateRequest:
    """Checks the request first. `tenant` and `remaining_ms` do not travel: key and gRPC deadline say them."""
    check_request(request)
    message = pb.GenerateRequest(
        request_id=request.request_id,
        model=request.model,
        sampling=common.encode_sampling(request.sampling),
        max_tokens=request.max_tokens,
        stop=request.stop,
        budget=common.encode_budget(request.budget),
        min_p_good=request.min_p_good,
        placement=PLACEMENTS[request.placement],
        data_class=request.data_class,
        session_id=request.session_id,
        priority=request.priority,
        on_miss=ON_MISS[request.on_miss],
        early_accept=request.early_accept,
        explain=request.explain,
        adapter=request.adapter,
        format=common.encode_format(request.format),
        top_logprobs=request.top_logprobs,
    )
    if request.prompt is not None:
        message.prompt = request.prompt
    else:
        message.chat.messages.extend(common.encode_message(m) for m in request.messages)
    return message


def decode_generate_request(
    message: pb.GenerateRequest, *, tenant: str = "default", remaining_ms: float | None = None
) -> GenerateRequest:
    """`tenant` comes from the caller's key, `remaining_ms` from the gRPC deadline (None: there is none)."""
    kind = message.WhichOneof("input")
    if kind is None:
        raise invalid("input", "neither chat nor prompt is given")
    if len(message.chat.messages) > MAX_MESSAGES:
        raise invalid(
            "messages", f"has {len(message.chat.messages)} entries, at most {MAX_MESSAGES} are allowed"
        )
    messages = tuple(
        common.decode_message(m, f"messages[{index}]") for index, m in enumerate(message.chat.messages)
    )
    request = GenerateRequest(
        request_id=message.request_id,
        messages=messages,
        prompt=message.prompt if kind == "prompt" else None,
        model=message.model or "auto",
        tenant=tenant,
        sampling=common.decode_sampling(message.sampling),
        max_tokens=message.max_tokens,
        stop=tuple(message.stop),
        budget=common.decode_budget(message.budget),
        min_p_good=message.min_p_good if message.HasField("min_p_good") else None,
        placement=decode_enum(PLACEMENTS_BACK, message.placement, "placement"),
        data_class=message.data_class,
        session_id=message.session_id,
        priority=message.priority,
        on_miss=decode_enum(ON_MISS_BACK, message.on_miss, "on_miss"),
        early_accept=message.early_accept,
        explain=message.explain,
        remaining_ms=remaining_ms,
        adapter=message.adapter,
        format=common.decode_format(message.format),
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
    )
    return check_request(request)


def encode_route(route: Route) -> pb.Route:
    return pb.Route(
        node_id=route.node_id,
        node_name=route.node_name,
        tier=common.TIERS[route.tier],
        model=route.model,
        variant_digest=route.variant_digest,
        quantization=route.quantization,
        predicted_ttft_ms=route.predicted_ttft_ms,
        predicted_ttft_p95_ms=route.predicted_ttft_p95_ms,
        predicted_tpot_ms=route.predicted_tpot_ms,
        predicted_total_ms=route.predicted_total_ms,
        p_meet=route.p_meet,
        p_good=route.p_good,
        expected_cached_tokens=route.expected_cached_tokens,
        at_risk=route.at_risk,
        why=route.why,
        certified=route.certified,
    )


def decode_route(route: pb.Route) -> Route:
    return Route(
        node_id=route.node_id,
        node_name=route.node_name,
        tier=common.decode_tier(route.tier, "route.tier"),
        model=route.model,
        variant_digest=route.variant_digest,
        quantization=route.quantization,
        predicted_ttft_ms=route.predicted_ttft_ms,
        predicted_ttft_p95_ms=route.predicted_ttft_p95_ms,
        predicted_tpot_ms=route.predicted_tpot_ms,
        predicted_total_ms=route.predicted_total_ms,
        p_meet=route.p_meet,
        p_good=route.p_good if route.HasField("p_good") else None,
        expected_cached_tokens=route.expected_cached_tokens,
        at_risk=route.at_risk,
        why=route.why,
        certified=route.certified,
    )


def encode_explanation(explanation: Explanation) -> pb.Explanation:
    return pb.Explanation(
        candidates=[
            pb.Candidate(
                route=encode_route(c.route),
                qualified=c.qualified,
                cost_per_mtoken=c.cost_per_mtoken,
                energy_per_mtoken=c.energy_per_mtoken,
                link_per_mtoken=c.link_per_mtoken,
            )
            for c in explanation.candidates
        ],
        filtered=explanation.filtered,
        prompt_tokens=explanation.prompt_tokens,
        difficulty=explanation.difficulty,
        decision_ms=explanation.decision_ms,
    )


def decode_explanation(explanation: pb.Explanation) -> Explanation:
    return Explanation(
        candidates=tuple(
            Candidate(
                route=decode_route(c.route),
                qualified=c.qualified,
                cost_per_mtoken=c.cost_per_mtoken,
                energy_per_mtoken=c.energy_per_mtoken,
                link_per_mtoken=c.link_per_mtoken,
            )
            for c in explanation.candidates
        ),
        filtered=dict(explanation.filtered),
        prompt_tokens=explanation.prompt_tokens,
        difficulty=explanation.difficulty,
        decision_ms=explanation.decision_ms,
    )


def encode_event(event: GenerateEvent) -> pb.GenerateResponse:
    if isinstance(event, Chunk):
        return pb.GenerateResponse(chunk=encode_chunk(event))
    if isinstance(event, Accepted):
        return pb.GenerateResponse(accepted=_encode_accepted(event))
    if isinstance(event, Finished):
        return pb.GenerateResponse(finished=_encode_finished(event))
    return pb.GenerateResponse(
        restarted=pb.Restarted(
            attempt_no=event.attempt_no, cause=event.cause, route=encode_route(event.route)
        )
    )


def decode_event(message: pb.GenerateResponse) -> GenerateEvent | None:
    """None for an event of a newer protocol, which is to be skipped."""
    kind = message.WhichOneof("event")
    if kind == "chunk":
        return decode_chunk(message.chunk)
    if kind == "accepted":
        return _decode_accepted(message.accepted)
    if kind == "finished":
        return _decode_finished(message.finished)
    if kind == "restarted":
        restarted = message.restarted
        return Restarted(
            attempt_no=restarted.attempt_no, cause=restarted.cause, route=decode_route(restarted.route)
        )
    return None


class Judgement(NamedTuple):
    """A verdict on an answer, or on that of one `variant` (its digest) of a pair."""

    request_id: str
    worse: bool
    variant: str = ""


def encode_feedback(judgement: Judgement) -> pb.FeedbackRequest:
    """Raises ServeError(INVALID_ARGUMENT) for what is no request id or no digest."""
    verdict = pb.VERDICT_WORSE if judgement.worse else pb.VERDICT_GOOD
    return pb.FeedbackRequest(
        request_id=check_request_id(judgement.request_id),
        verdict=verdict,
        variant=common.label(judgement.variant, "variant", limit=MAX_DIGEST_CHARS),
    )


def decode_feedback(message: pb.FeedbackRequest) -> Judgement:
    """Raises ServeError(INVALID_ARGUMENT)."""
    if message.verdict not in (pb.VERDICT_GOOD, pb.VERDICT_WORSE):
        raise invalid("verdict", "must be VERDICT_GOOD or VERDICT_WORSE")
    return Judgement(
        check_request_id(message.request_id),
        message.verdict == pb.VERDICT_WORSE,
        common.label(message.variant, "variant", limit=MAX_DIGEST_CHARS),
    )


def encode_chunk(chunk: Chunk) -> pb.Chunk:
    return pb.Chunk(
        attempt_no=chunk.attempt_no,
        first_index=chunk.first_index,
        count=chunk.count,
        token_ids=chunk.token_ids,
        text=chunk.text,
        unit=common.UNITS[chunk.unit],
        logprobs=[common.encode_logprob(each) for each in chunk.logprobs],
    )


def decode_chunk(chunk: pb.Chunk) -> Chunk:
    return Chunk(
        attempt_no=chunk.attempt_no,
        first_index=chunk.first_index,
        count=chunk.count,
        text=chunk.text,
        token_ids=tuple(chunk.token_ids),
        unit=common.decode_unit(chunk.unit, "chunk.unit"),
        logprobs=common.decode_logprobs(chunk.logprobs, chunk.count),
    )


def _encode_accepted(event: Accepted) -> pb.Accepted:
    return pb.Accepted(
        route=encode_route(event.route),
        explanation=None if event.explanation is None else encode_explanation(event.explanation),
        resume_token=event.resume_token,
    )


def _decode_accepted(event: pb.Accepted) -> Accepted:
    return Accepted(
        route=decode_route(event.route),
        explanation=decode_explanation(event.explanation) if event.HasField("explanation") else None,
        resume_token=event.resume_token,
    )


def _encode_finished(event: Finished) -> pb.Finished:
    return pb.Finished(
        reason=common.FINISH_REASONS[event.reason],
        usage=common.encode_usage(event.usage),
        timings=common.encode_timings(event.timings),
        budget=OUTCOMES[event.budget],
        attempts=event.attempts,
        feedback_wanted=event.feedback_wanted,
    )


def _decode_finished(event: pb.Finished) -> Finished:
    return Finished(
        reason=common.decode_finish_reason(event.reason, "finished.reason"),
        usage=common.decode_usage(event.usage),
        timings=common.decode_timings(event.timings),
        budget=decode_enum(_OUTCOMES_BACK, event.budget, "finished.budget"),
        attempts=event.attempts,
        feedback_wanted=event.feedback_wanted,
    )
