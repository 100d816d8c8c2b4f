"""Texts to vectors over the backend, a bounded number at a time, and OpenAI's shape of the answer."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from serving.openai_api.answer import running
from serving.openai_api.backend import GenerateBackend
from tidegate.routing.domain import Code, GenerateRequest, ServeError
from tidegate.routing.embedding import MAX_INPUTS, Collector, Embedded, pack_vector
from tidegate.wire import summary


async def embed(backend: GenerateBackend, asked: GenerateRequest) -> list[Embedded]:
    """One part after the other. Raises ServeError."""
    return [await _embed_part(backend, part) for part in parts(asked)]


def parts(asked: GenerateRequest) -> Iterator[GenerateRequest]:
    """The request in pieces that a node takes; each has an id of its own."""
    for number, first in enumerate(range(0, len(asked.embed), MAX_INPUTS)):
        name = asked.request_id if number == 0 else f"{asked.request_id[:120]}.{number}"
        yield replace(asked, request_id=name, embed=asked.embed[first : first + MAX_INPUTS])


async def _embed_part(backend: GenerateBackend, asked: GenerateRequest) -> Embedded:
    collector = Collector()
    async with running(backend, asked) as events:
        async for event in events:
            try:
                embedded = collector.take(event)
            except ValueError:
                raise ServeError(Code.INTERNAL, "The node's vectors cannot be read") from None
            if embedded is not None and len(embedded.vectors) == len(asked.embed):
                return embedded
    raise ServeError(Code.INTERNAL, "The node gave another number of vectors than texts")


def body_of(found: list[Embedded], *, model: str, as_base64: bool) -> dict[str, Any]:
    tokens = sum(embedded.usage.prompt_tokens for embedded in found)
    vectors = [vector for embedded in found for vector in embedded.vectors]
    route = found[0].route
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(pack_vector(vector)).decode() if as_base64 else list(vector),
            }
            for index, vector in enumerate(vectors)
        ],
        "model": route.model if route is not None else model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def headers_of(found: list[Embedded]) -> dict[str, str]:
    route = found[0].route
    return {} if route is None else summary.of_route(route)
