"""The OpenAI API over the whole path: the same tokens, the same errors, and slots freed on disconnect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from gateway_rig import QUICK, SLOW, Rig, expected_text, question, until

ASK = "what is a tide?"


@pytest.fixture
async def http(rig: Rig) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{rig.ports.http}") as session:
        yield session


def chat(**body: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": ASK}], "max_tokens": 8, **body}


async def sse(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.content:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line[6:])


async def test_a_completion_has_the_engines_text_and_usage(rig: Rig, http: aiohttp.ClientSession) -> None:
    await rig.add_node("n1")
    async with http.post("/v1/chat/completions", json=chat()) as answer:
        body = await answer.json()
    assert answer.status == 200
    assert body["choices"][0]["message"]["content"] == expected_text(question("r"))
    assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 8)


async def test_a_stream_has_every_piece_once(rig: Rig, http: aiohttp.ClientSession) -> None:
    await rig.add_node("n1")
    async with http.post("/v1/chat/completions", json=chat(stream=True, max_tokens=40)) as answer:
        pieces = [d["choices"][0]["delta"].get("content") or "" async for d in sse(answer) if d["choices"]]
    assert "".join(pieces) == expected_text(question("r", max_tokens=40))


async def test_models_and_their_aliases_are_listed(rig: Rig, http: aiohttp.ClientSession) -> None:
    await rig.add_node("n1", replace(QUICK, aliases=("small",)))
    async with http.get("/v1/models") as answer:
        names = {m["id"] for m in (await answer.json())["data"]}
    assert {"auto", "oracle"} <= names


@pytest.mark.parametrize(
    ("headers", "body", "status", "word"),
    [
        ({"x-tidegate-data-class": "restricted"}, {}, 422, "data_class"),
        ({}, {"model": "nonsense"}, 404, "model"),
        ({"x-tidegate-ttft-ms": "0.001", "x-tidegate-on-miss": "reject"}, {}, 429, "budget_unmeetable"),
        ({"x-tidegate-placement": "edge"}, {}, 422, "not_permitted"),
        ({}, {"max_tokens": 100_000_000}, 400, "max_tokens"),
    ],
    ids=["data class", "model", "budget", "placement", "max_tokens"],
)
async def test_refusals_have_openais_shape(
    headers: dict[str, str], body: Any, status: int, word: str
) -> None:
    async with Rig(default_tier="cloud") as rig, aiohttp.ClientSession() as http:
        await rig.add_node("n1")
        url = f"http://127.0.0.1:{rig.ports.http}/v1/chat/completions"
        async with http.post(url, json=chat(**body), headers=headers) as answer:
            error = (await answer.json())["error"]
        assert answer.status == status
        assert word in json.dumps(error)
        if status == 429:  # an idle node misses it: waiting would not help
            assert answer.headers["x-should-retry"] == "false"
        async with http.post(url, json=chat()) as answer:  # the control
            assert answer.status == 200


async def post(http: aiohttp.ClientSession, body: dict[str, Any]) -> aiohttp.ClientResponse:
    return await http.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_disconnects_frees_the_sequence(rig: Rig, stream: bool) -> None:
    node = await rig.add_node("n1", SLOW)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{rig.ports.http}") as http:
        asked = asyncio.create_task(post(http, chat(stream=stream, max_tokens=1000)))
        await until(lambda: node.engine.load().running == 1)
        if stream:
            (await asked).close()
        else:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
    assert await until(lambda: node.idle) < 1.0
    await until(lambda: rig.app._admission.in_flight == 0)


async def test_a_stream_that_breaks_says_so(rig: Rig, http: aiohttp.ClientSession) -> None:
    node = await rig.add_node("n1", SLOW)
    async with http.post("/v1/chat/completions", json=chat(stream=True, max_tokens=1000)) as answer:
        events = []
        async for event in sse(answer):
            events.append(event)
            if len(events) == 3:
                node.engine.crash()
    assert events[-1]["error"]["code"] == "engine_crashed"
    assert answer.status == 200


async def test_headers_reach_the_router(rig: Rig, http: aiohttp.ClientSession) -> None:
    node = await rig.add_node("n1")
    headers = {"x-tidegate-session": "chat-1", "x-tidegate-ttft-ms": "5000"}
    async with http.post("/v1/chat/completions", json=chat(), headers=headers) as answer:
        assert answer.status == 200
    assert rig.app._sessions.hint(rig.app._sessions.name("default", "chat-1")) is not None
    met = {"tier": "edge", "outcome": "met"}
    assert rig.app.metrics.registry.get_sample_value("tidegate_budget_total", met) == 1
    assert node.idle
