"""Embedding requests, built and read alike by the async and the sync client."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TypedDict

from tidegate.client.errors import InvalidRequest, broken_protocol, from_serve_error
from tidegate.client.request import word
from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import Budget, Code, GenerateRequest, OnMiss, Placement, ServeError
from tidegate.routing.embedding import MAX_INPUTS, Embedded
from tidegate.wire.embedding import decode_embedded, encode_embed_request


class EmbedOptions(TypedDict, total=False):
    """Keyword arguments of embed. All are optional."""

    # Name, alias, or "auto".
    model: str
    budget: Budget | None
    placement: Placement | str
    # Label that limits where the texts may go.
    data_class: str
    # -10 to 10, higher goes first.
    priority: int
    on_miss: OnMiss | str
    # Chosen by the SDK when not given.
    request_id: str


_OPTIONS = frozenset(EmbedOptions.__annotations__)


def build_embed_request(texts: Sequence[str], options: EmbedOptions) -> pb.EmbedRequest:
    """Raises InvalidRequest with `param`; nothing was sent."""
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
    if isinstance(texts, str) or not 1 <= len(texts) <= MAX_INPUTS:
        message = f"inputs: must be a list of 1 to {MAX_INPUTS} texts"
        raise InvalidRequest(message, code=Code.INVALID_ARGUMENT, reason="INVALID_FIELD", param="inputs")
    try:
        return encode_embed_request(
            GenerateRequest(
                request_id=options.get("request_id") or uuid.uuid4().hex,
                embed=tuple(texts),
                model=options.get("model", "auto"),
                budget=options.get("budget") or Budget(),
                placement=word(Placement, options.get("placement", Placement.ANY), "placement"),
                data_class=options.get("data_class", ""),
                priority=options.get("priority", 0),
                on_miss=word(OnMiss, options.get("on_miss", OnMiss.BEST_EFFORT), "on_miss"),
            )
        )
    except ServeError as error:
        raise from_serve_error(error) from error


def read_embedded(response: pb.EmbedResponse, count: int) -> Embedded:
    """Raises TidegateError for an answer that does not fit the question."""
    try:
        embedded = decode_embedded(response)
    except ServeError as error:
        raise broken_protocol(f"unreadable answer: {error.message}", "BAD_MESSAGE") from error
    if len(embedded.vectors) != count:
        raise broken_protocol(f"{len(embedded.vectors)} vectors came for {count} texts", "BAD_MESSAGE")
    return embedded
