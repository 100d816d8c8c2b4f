"""Embeddings from every door through gateway and link to an engine and back."""

from __future__ import annotations

from dataclasses import replace

import aiohttp
import grpc
import pytest
from gateway_rig import QUICK, Rig, served_error

import tidegate
from serving.engines.oracle_embedding import oracle_vector
from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import Code

TEXTS = ["a tide", "a gate 🌊", "a tide"]
VECTORS = [pytest.approx(oracle_vector(QUICK.model_digest, text), abs=1e-6) for text in TEXTS]
BLIND = replace(QUICK, capabilities=frozenset({"token_ids"}))


async def test_the_sdk_gets_one_vector_for_each_text(rig: Rig) -> None:
    await rig.add_node("blind", BLIND)
    await rig.add_node("n1")
    async with tidegate.Client(f"127.0.0.1:{rig.ports.grpc}") as client:
        found = await client.embed(TEXTS, deadline_s=20.0)
    assert list(found.vectors) == VECTORS
    assert found.usage.prompt_tokens > 0
    assert found.usage.completion_tokens == 0
    assert found.route is not None
    assert found.route.node_id == "n1"


async def test_the_openai_door_takes_more_texts_than_one_work_holds(rig: Rig) -> None:
    await rig.add_node("n1")
    texts = [f"text {number}" for number in range(150)]
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{rig.ports.http}") as http,
        http.post("/v1/embeddings", json={"model": "oracle", "input": texts}) as answer,
    ):
        body = await answer.json()
    assert answer.status == 200
    assert [row["index"] for row in body["data"]] == list(range(150))
    for text, row in zip(texts, body["data"], strict=True):
        assert row["embedding"] == pytest.approx(oracle_vector(QUICK.model_digest, text), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "inputs", "code"),
    [
        (BLIND, ["x"], Code.FAILED_PRECONDITION),
        (replace(QUICK, context_tokens=16), ["x", "long " * 100], Code.INVALID_ARGUMENT),
        (QUICK, [], Code.INVALID_ARGUMENT),
        (QUICK, ["x", ""], Code.INVALID_ARGUMENT),
        (QUICK, ["x"] * 129, Code.INVALID_ARGUMENT),
    ],
)
async def test_what_cannot_be_embedded_is_refused(
    rig: Rig, settings: object, inputs: list[str], code: Code
) -> None:
    await rig.add_node("n1", settings)  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await rig.stub.Embed(pb.EmbedRequest(request_id="r1", inputs=inputs), timeout=20)
    assert served_error(failed.value).code is code
