"""Structured answers over the OpenAI front: what is asked of the backend, and what clients read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.openai_api.bodies import ChatBody
from serving.openai_api.inputs import NO_INPUTS
from serving.openai_api.render import AnswerHead, ChatShape, CompletionShape, WholeText
from serving.openai_api.tools import AUTO, REQUIRED, Function, ToolReader, Tools
from serving.openai_api.translate import parse_body, to_request
from tidegate.routing.domain import (
    Chunk,
    Finished,
    FinishReason,
    GenerateRequest,
    Role,
    ServeError,
    Timings,
    TokenLogprob,
    Usage,
)

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "$defs": {"city": {"enum": ["Oslo", "Lima"]}},
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "tells", "parameters": PARAMETERS},
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
USER = {"role": "user", "content": "How is it in Lima?"}
FUNCTIONS = (Function("weather", "tells", PARAMETERS), Function("clock", "", {"type": "object"}))
CALL = '{"name": "weather", "arguments": {"city": "Lima"}}'
HEAD = AnswerHead("r1", 0, "m")
STOP = Finished(FinishReason.STOP, Usage(1, 1), Timings())


def asked(**members: Any) -> GenerateRequest:
    body = parse_body(ChatBody, json.dumps({"messages": [USER], **members}).encode())
    return to_request(body, NO_INPUTS, request_id="r1", tenant="t")


@pytest.mark.parametrize(("choice", "or_text"), [(None, True), ("auto", True), ("required", False)])
def test_tools_become_a_schema_and_a_system_message(choice: str | None, or_text: bool) -> None:
    request = asked(tools=[WEATHER, CLOCK], **({} if choice is None else {"tool_choice": choice}))
    system, user = request.messages
    assert (system.role, user.content) == (Role.SYSTEM, USER["content"])
    assert "weather" in system.content
    assert "Lima" in system.content
    assert request.format.or_text is or_text
    schema = json.loads(request.format.json_schema)
    assert [part["properties"]["name"]["const"] for part in schema["anyOf"]] == ["weather", "clock"]
    # The reference still finds its definition, one place further in.
    ref = schema["anyOf"][0]["properties"]["arguments"]["properties"]["city"]["$ref"]
    assert ref == "#/anyOf/0/properties/arguments/$defs/city"


def test_a_named_function_asks_for_a_call_of_it_alone() -> None:
    request = asked(tools=[WEATHER, CLOCK], tool_choice={"type": "function", "function": {"name": "weather"}})
    schema = json.loads(request.format.json_schema)
    assert schema["properties"]["name"] == {"const": "weather"}
    ref = schema["properties"]["arguments"]["properties"]["city"]["$ref"]
    assert ref == "#/properties/arguments/$defs/city"
    assert not request.format.or_text


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_of_allowed_tools_only_those_can_be_called(mode: str) -> None:
    allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "clock"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    request = asked(tools=[WEATHER, CLOCK], tool_choice=choice)
    schema = json.loads(request.format.json_schema)
    assert [part["properties"]["name"]["const"] for part in schema["anyOf"]] == ["clock"]
    assert request.format.or_text is (mode == "auto")
    with pytest.raises(ServeError) as caught:
        asked(tools=[WEATHER], tool_choice=choice)
    assert caught.value.param == "tool_choice"


def test_earlier_calls_and_their_results_are_told() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    request = asked(
        messages=[
            {"role": "system", "content": "Be brief."},
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
        ],
        tools=[CLOCK],
    )
    system, _, assistant, tool = request.messages
    assert system.content.startswith("Be brief.")
    assert json.loads(assistant.content) == {"name": "clock", "arguments": {}}
    assert (tool.role, tool.name, tool.content) == (Role.TOOL, "clock", "12:00")


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tools": [CLOCK], "response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "response_format"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"one": 1}}, "logit_bias"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"x": "y" * 70_000}}}},
            "response_format",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(members: dict[str, Any], param: str) -> None:
    with pytest.raises(ServeError) as caught:
        asked(**members)
    assert caught.value.param == param


def test_formats_probabilities_and_biases_reach_the_request() -> None:
    schema = {"type": "object"}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    request = asked(response_format=wanted, logprobs=True, top_logprobs=2, logit_bias={"7": -100})
    assert json.loads(request.format.json_schema) == schema
    assert request.top_logprobs == 2
    assert request.sampling.logit_bias == ((7, -100.0),)
    assert asked(logprobs=True).top_logprobs == 0
    assert asked(response_format={"type": "json_object"}).format.json_schema == '{"type": "object"}'


@pytest.mark.parametrize(
    ("choice", "texts", "content", "name", "arguments"),
    [
        (AUTO, ["It", " is fine"], "It is fine", None, ""),
        (AUTO, ["", '{"na', CALL[4:]], "", "weather", '{"city": "Lima"}'),
        (REQUIRED, [CALL[:9], CALL[9:]], "", "weather", '{"city": "Lima"}'),
        ("weather", [CALL[:-9], CALL[-9:]], "", "weather", '{"city": "Lima"}'),
        # Cut off by its length: text, not half a call.
        (REQUIRED, [CALL[:20]], CALL[:20], None, ""),
    ],
)
def test_deltas_add_up_to_the_call_or_the_text(
    choice: str, texts: list[str], content: str, name: str | None, arguments: str
) -> None:
    reader = ToolReader(Tools(FUNCTIONS, choice), "call_1")
    deltas = [delta for text in texts for delta in reader.feed(text)] + reader.end()
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert "".join(delta.get("content", "") for delta in deltas) == content
    assert [c["function"]["name"] for c in calls if "name" in c["function"]] == ([name] if name else [])
    assert "".join(c["function"]["arguments"] for c in calls) == arguments
    assert reader.called is (name is not None)


def test_a_whole_call_is_a_tool_call_with_its_finish_reason() -> None:
    shape = ChatShape(HEAD, tools=Tools(FUNCTIONS))
    (choice,) = shape.whole(WholeText(CALL, (), STOP), {})["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    function = choice["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("weather", {"city": "Lima"})
    (after,) = shape.whole(WholeText(f"Wait.\n<tool_call>{CALL}</tool_call>", (), STOP), {})["choices"]
    assert (after["message"]["content"], len(after["message"]["tool_calls"])) == ("Wait.\n", 1)
    (plain,) = shape.whole(WholeText("no", (), STOP), {})["choices"]
    assert (plain["finish_reason"], plain["message"]["content"]) == ("stop", "no")


def test_probabilities_in_both_shapes_even_without_text() -> None:
    odds = TokenLogprob(
        5, b"\xc3", -0.5, (TokenLogprob(5, b"\xc3", -0.5), TokenLogprob(6, b"x", float("-inf"))), 0.1, 0.7
    )
    chunk = Chunk(1, 0, 1, "", logprobs=(odds,))
    (event,) = [json.loads(e[6:]) for e in ChatShape(HEAD).chunk(chunk).split(b"\n\n") if e]
    (entry,) = event["choices"][0]["logprobs"]["content"]
    assert (entry["logprob"], entry["bytes"], entry["entropy"]) == (-0.5, [0xC3], 0.7)
    assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -9999.0]
    older = CompletionShape(HEAD).whole(WholeText("ab", (odds, odds), STOP), {})["choices"][0]["logprobs"]
    assert older["token_logprobs"] == [-0.5, -0.5]
    assert older["text_offset"] == [0, 1]


TAGGED = f"<tool_call>\n{CALL}\n</tool_call>"


@pytest.mark.parametrize("size", [1, 3, 200])
@pytest.mark.parametrize(
    ("text", "names"),
    [
        (TAGGED, ["weather"]),
        (f'{TAGGED}\n<tool_call>{{"name": "clock", "parameters": {{}}}}</tool_call>', ["weather", "clock"]),
        ("<b>Lima</b> is mild", []),
        ('<tool_call>{"name": "none", "arguments": {}}</tool_call>', []),
        (TAGGED[:30], []),
    ],
)
def test_a_models_own_form_of_calls_is_read_as_it_comes(size: int, text: str, names: list[str]) -> None:
    reader = ToolReader(Tools(FUNCTIONS), "call-1")
    deltas = [d for at in range(0, len(text), size) for d in reader.feed(text[at : at + size])]
    deltas += reader.end()
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["function"]["name"] for call in calls if "id" in call] == names
    assert [call["index"] for call in calls if "id" in call] == list(range(len(names)))
    assert len({call["id"] for call in calls if "id" in call}) == len(names)
    assert reader.called is bool(names)
    assert "".join(delta.get("content", "") for delta in deltas) == ("" if names else text)
