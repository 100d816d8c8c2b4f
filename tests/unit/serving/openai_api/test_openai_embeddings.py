"""/v1/embeddings in OpenAI's shapes."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai_front_fakes import ROUTE, ScriptedBackend, serve

from tidegate.routing.domain import (
    Accepted,
    BudgetOutcome,
    Chunk,
    Code,
    Finished,
    FinishReason,
    GenerateEvent,
    GenerateRequest,
    ServeError,
    Timings,
    Usage,
)
from tidegate.routing.embedding import pack_vector


class Vectors(ScriptedBackend):
    """Gives each text its length as its vector."""

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        self.requests.append(request)
        yield Accepted(ROUTE)
        for index, text in enumerate(request.embed):
            yield Chunk(1, index, 1, "", vectors=pack_vector((float(len(text)), 0.5)))
        usage = Usage(sum(map(len, request.embed)))
        yield Finished(FinishReason.STOP, usage, Timings(), BudgetOutcome.NONE, attempts=1)


async def ask(backend: ScriptedBackend, body: dict[str, Any]) -> tuple[int, Any, Any]:
    async with serve(backend) as front:
        return await front.post(body, "/v1/embeddings")


async def test_one_text_or_many() -> None:
    status, body, headers = await ask(Vectors(), {"model": "small", "input": "abc"})
    assert (status, body["object"], body["model"]) == (200, "list", "smollm2")
    assert body["data"] == [{"object": "embedding", "index": 0, "embedding": [3.0, 0.5]}]
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert headers["x-tidegate-node"] == "edge-1"
    _, body, _ = await ask(Vectors(), {"input": ["a", "bb"], "tidegate": {"data_class": "restricted"}})
    assert [row["embedding"][0] for row in body["data"]] == [1.0, 2.0]


async def test_base64_as_the_openai_client_asks_for_it() -> None:
    _, body, _ = await ask(Vectors(), {"input": ["abc"], "encoding_format": "base64"})
    assert struct.unpack("<2f", base64.b64decode(body["data"][0]["embedding"])) == (3.0, 0.5)


async def test_long_lists_are_asked_in_parts() -> None:
    backend = Vectors()
    _, body, _ = await ask(backend, {"input": ["x" * (n + 1) for n in range(300)]})
    assert [len(request.embed) for request in backend.requests] == [128, 128, 44]
    assert len({request.request_id for request in backend.requests}) == 3
    assert [row["embedding"][0] for row in body["data"]] == [float(n + 1) for n in range(300)]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "m"}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": "x", "dimensions": 8}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    status, answer, _ = await ask(Vectors(), body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_failures_have_openais_shape() -> None:
    for steps, code in (
        ([ServeError(Code.INVALID_ARGUMENT, "input 1 has 700 tokens, the limit is 1 to 512")], 400),
        ([Accepted(ROUTE), Chunk(1, 0, 1, "", vectors=b"123")], 500),
        (
            [
                Accepted(ROUTE),
                Finished(FinishReason.STOP, Usage(), Timings(), BudgetOutcome.NONE, attempts=1),
            ],
            500,
        ),
    ):
        status, answer, _ = await ask(ScriptedBackend(steps), {"input": "x"})
        assert status == code
        assert answer["error"]["message"]
