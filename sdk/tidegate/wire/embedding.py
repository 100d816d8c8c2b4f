"""Conversions of the messages of Embed."""

from __future__ import annotations

from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import GenerateRequest
from tidegate.routing.embedding import Embedded
from tidegate.wire import codec, common
from tidegate.wire.common import decode_enum, invalid
from tidegate.wire.validate import check_request


def encode_embed_request(request: GenerateRequest) -> pb.EmbedRequest:
    """Checks the request first. `tenant` and `remaining_ms` do not travel: key and gRPC deadline say them."""
    check_request(request)
    return pb.EmbedRequest(
        request_id=request.request_id,
        inputs=request.embed,
        model=request.model,
        placement=codec.PLACEMENTS[request.placement],
        data_class=request.data_class,
        priority=request.priority,
        on_miss=codec.ON_MISS[request.on_miss],
        budget=common.encode_budget(request.budget),
    )


def decode_embed_request(
    message: pb.EmbedRequest, *, tenant: str = "default", remaining_ms: float | None = None
) -> GenerateRequest:
    if not message.inputs:
        raise invalid("inputs", "is empty")
    request = GenerateRequest(
        request_id=message.request_id,
        embed=tuple(message.inputs),
        model=message.model or "auto",
        tenant=tenant,
        placement=decode_enum(codec.PLACEMENTS_BACK, message.placement, "placement"),
        data_class=message.data_class,
        priority=message.priority,
        on_miss=decode_enum(codec.ON_MISS_BACK, message.on_miss, "on_miss"),
        budget=common.decode_budget(message.budget),
        remaining_ms=remaining_ms,
    )
    return check_request(request)


def encode_embedded(embedded: Embedded) -> pb.EmbedResponse:
    return pb.EmbedResponse(
        embeddings=[pb.Embedding(values=vector) for vector in embedded.vectors],
        usage=common.encode_usage(embedded.usage),
        route=None if embedded.route is None else codec.encode_route(embedded.route),
    )


def decode_embedded(message: pb.EmbedResponse) -> Embedded:
    return Embedded(
        vectors=tuple(tuple(embedding.values) for embedding in message.embeddings),
        usage=common.decode_usage(message.usage),
        route=codec.decode_route(message.route) if message.HasField("route") else None,
    )
