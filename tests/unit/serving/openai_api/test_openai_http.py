"""The front over a real server: answers whole and streamed, ids, headers, models."""

from __future__ import annotations

import asyncio
import re

import pytest
from openai_front_fakes import CHAT, DONE, NOW_S, ROUTE, ScriptedBackend, chunks, hello, serve, sse_events

from tidegate.routing.domain import (
    Accepted,
    Candidate,
    Explanation,
    Finished,
    FinishReason,
    GenerateEvent,
    Message,
    OnMiss,
    Placement,
    Restarted,
    Role,
    Route,
    Tier,
    Timings,
    Usage,
)


async def test_chat_whole() -> None:
    backend = ScriptedBackend()
    async with serve(backend) as front:
        status, body, headers = await front.post(CHAT)
    assert status == 200
    assert body["object"] == "chat.completion"
    assert body["created"] == NOW_S
    assert body["model"] == "smollm2"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello é😀", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    tidegate = body["tidegate"]
    assert tidegate["route"]["node_name"] == "edge-1"
    assert tidegate["route"]["tier"] == "edge"
    assert tidegate["timings"]["ttft_ms"] == 81.5
    assert (tidegate["budget"], tidegate["attempts"]) == ("met", 2)
    assert body["id"] == f"chatcmpl-{headers['x-request-id']}"
    assert headers["x-tidegate-node"] == "edge-1"
    assert headers["x-tidegate-tier"] == "edge"
    assert headers["x-tidegate-why"] == ROUTE.why


async def test_completion_whole() -> None:
    cut = Finished(FinishReason.LENGTH, Usage(), Timings())
    backend = ScriptedBackend([Accepted(ROUTE), *chunks("a", "b"), cut])
    async with serve(backend) as front:
        status, body, _ = await front.post({"prompt": ["once"]}, "/v1/completions")
    assert status == 200
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["choices"] == [{"index": 0, "text": "ab", "logprobs": None, "finish_reason": "length"}]
    assert backend.requests[0].prompt == "once"
    assert backend.requests[0].messages == ()
    assert backend.requests[0].model == "auto"


async def test_chat_streamed() -> None:
    async with serve(ScriptedBackend()) as front:
        status, text, headers = await front.post(
            CHAT | {"stream": True, "stream_options": {"include_usage": True}}
        )
    assert status == 200
    assert headers["Content-Type"].startswith("text/event-stream")
    assert headers["x-tidegate-node"] == "edge-1"
    *events, last = sse_events(text)
    assert last == "[DONE]"
    assert {(e["id"], e["created"], e["model"], e["object"]) for e in events} == {
        (f"chatcmpl-{headers['x-request-id']}", NOW_S, "smollm2", "chat.completion.chunk")
    }
    opening, *deltas, closing, usage = events
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [e["choices"][0]["delta"]["content"] for e in deltas] == ["Hel", "lo é😀"]
    assert closing["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert closing["tidegate"]["route"]["node_id"] == "a1b2"
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 10
    assert all(e["usage"] is None for e in [opening, *deltas, closing])


async def test_completion_streamed_without_usage() -> None:
    async with serve(ScriptedBackend()) as front:
        status, text, _ = await front.post({"prompt": "once", "stream": True}, "/v1/completions")
    assert status == 200
    *events, last = sse_events(text)
    assert last == "[DONE]"
    assert [e["choices"][0]["text"] for e in events] == ["Hel", "lo é😀", ""]
    assert [e["choices"][0]["finish_reason"] for e in events] == [None, None, "stop"]
    assert not any("usage" in e for e in events)
    assert events[-1]["tidegate"]["budget"] == "met"


@pytest.mark.parametrize(
    "text", ['"quoted" \\ back', "line\nbreak\r\t", "\u2028\u2029\x00\x7f", "é漢字👩‍👩‍👧", "data: [DONE]\n\n"]
)
async def test_any_text_survives_the_stream(text: str) -> None:
    async with serve(ScriptedBackend([Accepted(ROUTE), *chunks(text, text), DONE])) as front:
        _, streamed, _ = await front.post(CHAT | {"stream": True})
        _, whole, _ = await front.post(CHAT)
    contents = [e["choices"][0]["delta"].get("content", "") for e in sse_events(streamed)[:-1]]
    assert "".join(contents) == text * 2
    assert whole["choices"][0]["message"]["content"] == text * 2


async def test_stream_without_text_still_has_its_frame() -> None:
    async with serve(ScriptedBackend([Accepted(ROUTE), DONE])) as front:
        _, text, _ = await front.post(CHAT | {"stream": True})
    opening, closing, last = sse_events(text)
    assert opening["choices"][0]["delta"]["role"] == "assistant"
    assert closing["choices"][0]["finish_reason"] == "stop"
    assert last == "[DONE]"


async def test_hostile_model_name_stays_one_string() -> None:
    name = '\0text\0","x":"'
    async with serve(ScriptedBackend([*chunks("ok"), DONE])) as front:
        _, text, _ = await front.post(CHAT | {"stream": True, "model": name})
    events = sse_events(text)
    assert events[1]["model"] == name
    assert events[1]["choices"][0]["delta"]["content"] == "ok"


async def test_request_id_of_the_client_is_kept_when_valid() -> None:
    backend = ScriptedBackend()
    async with serve(backend) as front:
        _, body, headers = await front.post(CHAT, headers={"x-request-id": "job:1.a-B_2"})
        assert headers["x-request-id"] == backend.requests[-1].request_id == "job:1.a-B_2"
        assert body["id"] == "chatcmpl-job:1.a-B_2"
        for bad in ("has space", "a" * 129, 'quote"', ""):
            _, _, headers = await front.post(CHAT, headers={"x-request-id": bad})
            assert headers["x-request-id"] == backend.requests[-1].request_id
            assert re.fullmatch(r"[0-9a-f-]{36}", headers["x-request-id"])


async def test_headers_and_body_say_what_is_needed_and_the_body_wins() -> None:
    backend = ScriptedBackend()
    headers = {
        "x-tidegate-ttft-ms": "300",
        "X-Tidegate-Tpot-Ms": "20.5",
        "x-tidegate-target": "0.9",
        "x-tidegate-placement": "EDGE",
        "x-tidegate-data-class": "restricted",
        "x-tidegate-session": "s-1",
        "x-tidegate-priority": "-3",
        "x-tidegate-on-miss": "best-effort",
        "x-tidegate-quality": "0.5",
        "x-tidegate-deadline-ms": "5000",
    }
    body = CHAT | {"tidegate": {"ttft_ms": 150, "on_miss": "reject", "quality": None}}
    async with serve(backend) as front:
        status, _, _ = await front.post(body, headers=headers)
    assert status == 200
    (asked,) = backend.requests
    assert (asked.budget.ttft_ms, asked.budget.tpot_ms, asked.budget.target_share) == (150, 20.5, 0.9)
    assert asked.placement is Placement.EDGE
    assert asked.on_miss is OnMiss.REJECT
    assert (asked.data_class, asked.session_id, asked.priority) == ("restricted", "s-1", -3)
    assert asked.min_p_good == 0.5
    assert asked.remaining_ms is not None
    assert 4000 < asked.remaining_ms <= 5000
    assert asked.tenant == "acme"
    assert asked.messages == (Message(Role.USER, "hi"),)


async def test_explanation_on_request() -> None:
    explanation = Explanation((Candidate(ROUTE, True, 0.25),), {"health": 2}, 7, 0.125, 0.5)
    backend = ScriptedBackend([Accepted(ROUTE, explanation), *chunks("x"), DONE])
    async with serve(backend) as front:
        _, body, _ = await front.post(CHAT | {"tidegate": {"explain": True}})
    assert backend.requests[0].explain
    told = body["tidegate"]["explanation"]
    assert told["filtered"] == {"health": 2}
    assert told["candidates"][0]["route"]["node_id"] == "a1b2"
    assert told["candidates"][0]["cost_per_mtoken"] == 0.25


async def test_route_headers_are_ascii_and_bounded() -> None:
    name, why = "Küche\r\nX-Evil: 1" + "n" * 400, "weil … " * 400
    route = Route("n", name, Tier.CLOUD, "m", "", predicted_ttft_ms=250.0, why=why)
    async with serve(ScriptedBackend([Accepted(route), *chunks("x"), DONE])) as front:
        _, _, headers = await front.post(CHAT)
    ours = [(name, value) for name, value in headers.items() if name.lower().startswith("x-tidegate-")]
    names = {name.lower().removeprefix("x-tidegate-") for name, _ in ours}
    assert names == {"node", "tier", "model", "why", "predicted-ttft-ms"} | {
        "measured-ttft-ms",
        "attempts",
        "budget",
    }
    assert 900 < sum(len(name) + len(value) + 4 for name, value in ours) <= 1024
    assert headers["x-tidegate-node"].startswith("K?che??X-Evil: 1")
    assert all(value.isascii() and value.isprintable() for _, value in ours)


OTHER = Route("c3", "cloud-1", Tier.CLOUD, "big", "ffff", why="took over")


async def test_restart_of_a_whole_answer_is_invisible() -> None:
    steps: list[GenerateEvent] = [Accepted(ROUTE), *chunks("void"), Restarted(2, "node_lost", OTHER)]
    async with serve(ScriptedBackend([*steps, *chunks("good"), DONE])) as front:
        status, body, headers = await front.post(CHAT)
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "good"
    assert headers["x-tidegate-node"] == "cloud-1"
    assert body["model"] == "big"


@pytest.mark.parametrize("shown", [[], [""]])
async def test_restart_before_any_text_is_invisible_in_a_stream(shown: list[str]) -> None:
    steps: list[GenerateEvent] = [Accepted(ROUTE), *chunks(*shown), Restarted(2, "node_lost", OTHER)]
    async with serve(ScriptedBackend([*steps, *chunks("good"), DONE])) as front:
        _, text, _ = await front.post(CHAT | {"stream": True})
    *events, last = sse_events(text)
    assert last == "[DONE]"
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == "good"
    assert len({e["model"] for e in events}) == 1


async def test_restart_after_text_is_an_error_chunk() -> None:
    steps: list[GenerateEvent] = [Accepted(ROUTE), *chunks("void"), Restarted(2, "node_lost", OTHER)]
    backend = ScriptedBackend([*steps, *chunks("good"), DONE])
    async with serve(backend) as front:
        status, text, _ = await front.post(CHAT | {"stream": True})
    assert status == 200
    last = sse_events(text)[-1]
    assert last["error"]["code"] == "restarted"
    assert backend.ended.is_set()
    assert not backend.finished


async def test_models() -> None:
    async with serve(ScriptedBackend()) as front:
        status, body, headers = await front.request("GET", "/v1/models")
        assert status == 200
        assert headers["x-request-id"]
        assert [card["id"] for card in body["data"]] == ["smollm2", "org/big"]
        assert body["data"][0]["object"] == "model"
        assert body["data"][1]["owned_by"] == "us"
        for path, name in [
            ("smollm2", "smollm2"),
            ("small", "small"),
            ("org/big", "org/big"),
            ("org%2Fbig", "org/big"),
        ]:
            status, body, _ = await front.request("GET", f"/v1/models/{path}")
            assert (status, body["id"]) == (200, name)
        status, body, _ = await front.request("GET", "/v1/models/none")
        assert (status, body["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answered_generation_ends_by_itself_and_not_by_a_cancel(stream: bool) -> None:
    backend = ScriptedBackend([*hello(), *chunks("after the end")])
    async with serve(backend) as front:
        status, body, _ = await front.post(CHAT | {"stream": stream})
        await asyncio.wait_for(backend.ended.wait(), 2)
        assert backend.finished
        assert status == 200
        assert "after the end" not in body
        assert (await front.post(CHAT))[0] == 200


@pytest.mark.parametrize(
    ("named", "model", "adapter"),
    [
        ("smollm2:red", "smollm2", "red"),
        ("small:red", "small", "red"),
        ("auto:red", "auto", "red"),
        ("smollm2:red:1", "smollm2:red:1", ""),
        ("other:7b", "other:7b", ""),
    ],
)
async def test_an_adapter_stands_behind_the_models_name(named: str, model: str, adapter: str) -> None:
    backend = ScriptedBackend()
    async with serve(backend) as front:
        await front.post({**CHAT, "model": named})
    (request,) = backend.requests
    assert (request.model, request.adapter) == (model, adapter)


async def test_an_adapter_can_be_an_input_of_its_own() -> None:
    backend = ScriptedBackend()
    async with serve(backend) as front:
        await front.post(CHAT, headers={"x-tidegate-adapter": "red"})
    assert backend.requests[0].adapter == "red"
