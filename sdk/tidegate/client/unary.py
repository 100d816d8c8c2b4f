"""Pieces of the one-answer calls that the async and the sync client share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from tidegate.client.errors import InvalidRequest, broken_protocol, from_serve_error
from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import Code, Route, ServeError
from tidegate.wire import codec
from tidegate.wire.fleet import Decision, ModelInfo, NodeInfo, decode_decision, decode_model, decode_node

M = TypeVar("M")
V = TypeVar("V")


def decode_nodes(response: pb.ListNodesResponse | pb.WatchFleetResponse) -> tuple[NodeInfo, ...]:
    return _decoded(lambda r: tuple(decode_node(node) for node in r.nodes), response)


def decode_models(response: pb.ListModelsResponse) -> tuple[ModelInfo, ...]:
    return _decoded(lambda r: tuple(decode_model(model) for model in r.models), response)


def decode_explain(response: pb.ExplainResponse) -> Decision:
    return _decoded(decode_decision, response)


def decode_route(response: pb.RouteResponse) -> Route:
    return _decoded(lambda r: codec.decode_route(r.route), response)


def feedback_message(request_id: str, *, worse: bool, variant: str) -> pb.FeedbackRequest:
    """Raises InvalidRequest for what is no request id or no digest."""
    try:
        return codec.encode_feedback(codec.Judgement(request_id, worse, variant))
    except ServeError as error:
        raise from_serve_error(error) from error


def check_deadline(deadline_s: float | None) -> float | None:
    """Raises InvalidRequest for what is no length of time."""
    if deadline_s is not None and not (deadline_s > 0 and math.isfinite(deadline_s)):
        raise InvalidRequest(
            "deadline_s: must be above 0 seconds",
            code=Code.INVALID_ARGUMENT,
            reason="INVALID_FIELD",
            param="deadline_s",
        )
    return deadline_s


def _decoded(decode: Callable[[M], V], message: M) -> V:
    try:
        return decode(message)
    except ServeError as error:
        raise broken_protocol(f"unreadable answer: {error.message}", "BAD_MESSAGE") from error
