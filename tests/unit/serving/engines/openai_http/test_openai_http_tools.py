"""Tools with a server that calls them by itself: from our OpenAI front's words to the server's and back."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from openai_http_rig import running, work
from openai_stub import DONE, Reply, Stub, delta, finish

from serving.engine_settings import EngineSettings, build_engine
from serving.engines.base import EngineRefused
from serving.openai_api.tools import Function, ToolCall, ToolReader, Tools
from tidegate.routing.domain import FinishReason, Message, OutputFormat, Role
from tidegate.routing.prefix import canonical_bytes

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = Tools((Function("weather", "Tells it.", SCHEMA), Function("time", "Tells it.", {"type": "object"})))


def asked(*messages: Message, **more: Any) -> Any:
    return work(input=canonical_bytes(TOOLS.introduce(messages)), format=TOOLS.format(), **more)


def called(index: int, name: str = "", arguments: str = "") -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    piece = {"index": index, "function": function} | ({"id": "x", "type": "function"} if name else {})
    return {"choices": [{"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}]}


def answering(*events: dict[str, Any], reason: str = "tool_calls") -> Any:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        for event in events:
            await reply.send(event)
        await reply.send(finish(reason), DONE)
        return await reply.end()

    return answer


async def test_functions_reach_the_server_and_its_calls_are_read(stub: Stub) -> None:
    stub.script = answering(
        called(0, "weather"),
        called(0, arguments='{"city": "L'),
        called(0, arguments='á"}'),
        called(1, "time"),
    )
    async with running(stub) as rig:
        given = asked(Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "Weather and time?"))
        assert (await rig.run(given)).result is FinishReason.STOP
        expected = [ToolCall("weather", '{"city": "Lá"}'), ToolCall("time", "{}")]
        assert TOOLS.read(rig.text(given)) == ("", expected)
        reader = ToolReader(TOOLS, "id")
        assert [reader.feed(output.text) for output in rig.outputs[given.key]] == [[]] * len(
            rig.outputs[given.key]
        )
        assert len(reader.end()) == 4
    body = stub.seen[0].body
    assert [tool["function"]["name"] for tool in body["tools"]] == ["weather", "time"]
    assert body["tools"][0]["function"]["parameters"] == SCHEMA
    assert body["tool_choice"] == "auto"
    assert "response_format" not in body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


async def test_plain_text_stays_plain_text(stub: Stub) -> None:
    stub.script = answering(delta("It is "), delta("noon."), reason="stop")
    async with running(stub) as rig:
        given = asked(Message(Role.USER, "Time?"))
        await rig.run(given)
        assert rig.text(given) == "It is noon."


async def test_a_call_that_was_cut_off_is_no_call(stub: Stub) -> None:
    stub.script = answering(called(0, "weather"), called(0, arguments='{"city": "L'), reason="length")
    async with running(stub) as rig:
        given = asked(Message(Role.USER, "Weather?"))
        await rig.run(given)
        half = '{"name": "weather", "arguments": {"city": "L'
        assert TOOLS.read(rig.text(given)) == (half, [])
        assert rig.text(given) == half


async def test_calls_behind_a_text_are_calls_all_the_same(stub: Stub) -> None:
    stub.script = answering(
        delta("Let me "), delta("look."), called(0, "weather", '{"city": "Rome"}'), called(1, "time")
    )
    async with running(stub) as rig:
        given = asked(Message(Role.USER, "Weather and time?"))
        await rig.run(given)
        expected = [ToolCall("weather", '{"city": "Rome"}'), ToolCall("time", "{}")]
        assert TOOLS.read(rig.text(given)) == ("Let me look.", expected)


async def test_earlier_calls_and_their_results_belong_together(stub: Stub) -> None:
    lines = [ToolCall("weather", '{"city": "Rome"}').line(), ToolCall("time", "{}").line()]
    stub.script = answering(delta("done"), reason="stop")
    async with running(stub) as rig:
        await rig.run(
            asked(
                Message(Role.USER, "Both?"),
                Message(Role.ASSISTANT, "\n".join(lines)),
                Message(Role.TOOL, "noon", name="time"),
                Message(Role.TOOL, "rain", name="weather"),
            )
        )
    _, turn, time, weather = stub.seen[0].body["messages"]
    weather_call, time_call = turn["tool_calls"]
    assert weather_call["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert (time["tool_call_id"], time["content"]) == (time_call["id"], "noon")
    assert (weather["tool_call_id"], weather["content"]) == (weather_call["id"], "rain")


async def test_without_functions_it_is_refused(stub: Stub) -> None:
    async with running(stub) as rig:
        either = OutputFormat(json_schema='{"type": "object"}', or_text=True)
        with pytest.raises(EngineRefused, match="only with tools"):
            rig.engine.submit(work(format=either))
    assert stub.seen == []


def test_the_operator_says_that_the_server_calls_tools() -> None:
    section = {"base_url": "http://127.0.0.1:9/v1", "capabilities": ["json_schema_or_text"]}
    built = build_engine(EngineSettings.model_validate({"kind": "openai_http", "openai_http": section}))
    assert "json_schema_or_text" in built._settings.variant.capabilities  # type: ignore[attr-defined]
