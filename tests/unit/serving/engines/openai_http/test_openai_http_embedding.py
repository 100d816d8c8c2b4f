"""Texts passed on to a server's /v1/embeddings."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from openai_http_rig import running, work
from openai_stub import Reply, running_stub, status

from tidegate.routing.domain import Cause, Failure, FinishReason, InputKind
from tidegate.routing.embedding import pack_texts, unpack_vectors

TEXTS = ["one", "two"]


def answers(*vectors: Any) -> Any:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        rows = [{"index": number, "embedding": vector} for number, vector in enumerate(vectors)]
        return web.json_response({"data": rows[::-1], "usage": {"prompt_tokens": 6}})

    return answer


def texts() -> Any:
    return work(input_kind=InputKind.EMBED, input=pack_texts(TEXTS), max_tokens=len(TEXTS))


async def test_vectors_come_back_in_order_and_unit_long() -> None:
    async with running_stub() as stub, running(stub) as rig:
        stub.script = answers([3.0, 4.0], [0.0, 2.0])
        given = texts()
        finish = await rig.run(given)
    assert finish.result is FinishReason.STOP
    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (6, 0)
    (output,) = rig.outputs[given.key]
    assert unpack_vectors(output.vectors, 2) == [pytest.approx((0.6, 0.8)), (0.0, 1.0)]
    assert stub.seen[-1].path == "/v1/embeddings"
    assert stub.seen[-1].body == {"model": "m", "input": TEXTS, "encoding_format": "float"}


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        (answers([1.0]), Cause.UPSTREAM),
        (answers([1.0], [1.0, 2.0]), Cause.UPSTREAM),
        (answers(["a"], ["b"]), Cause.UPSTREAM),
        (status(400), Cause.INVALID_INPUT),
        (status(503), Cause.OVERLOADED),
    ],
)
async def test_what_is_no_answer_is_a_typed_failure(script: Any, cause: Cause) -> None:
    async with running_stub() as stub, running(stub) as rig:
        stub.script = script
        result = (await rig.run(texts())).result
    assert isinstance(result, Failure)
    assert result.cause is cause
