"""From bodies and headers to the domain's request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict

from serving.openai_api.bodies import MAX_MESSAGES, ChatBody, CompletionBody
from serving.openai_api.inputs import NO_INPUTS, TidegateInputs
from serving.openai_api.translate import (
    has_more_values,
    parse_body,
    parse_headers,
    to_request,
    valid_request_id,
)
from tidegate.routing.domain import Budget, Code, GenerateRequest, Message, Role, Sampling, ServeError

USER = {"role": "user", "content": "hi"}


def chat(**members: Any) -> GenerateRequest:
    body = parse_body(ChatBody, json.dumps({"messages": [USER]} | members).encode())
    return to_request(body, NO_INPUTS, request_id="r", tenant="t")


def completion(**members: Any) -> GenerateRequest:
    body = parse_body(CompletionBody, json.dumps({"prompt": "once"} | members).encode())
    return to_request(body, NO_INPUTS, request_id="r", tenant="t")


def test_the_smallest_request_takes_every_default() -> None:
    assert chat() == GenerateRequest(request_id="r", tenant="t", messages=(Message(Role.USER, "hi"),))
    assert completion() == GenerateRequest(request_id="r", tenant="t", prompt="once")


def test_sampling() -> None:
    asked = chat(
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.05,
        frequency_penalty=-1,
        presence_penalty=2,
        repetition_penalty=1.1,
        seed=-1,
    )
    assert asked.sampling == Sampling(
        temperature=0,
        top_p=0.5,
        top_k=0,
        min_p=0.05,
        frequency_penalty=-1,
        presence_penalty=2,
        repeat_penalty=1.1,
        seed=2**64 - 1,
    )
    assert completion(repeat_penalty=1.2, seed=7).sampling == Sampling(repeat_penalty=1.2, seed=7)
    surprised = completion(mirostat=2, mirostat_tau=4, mirostat_eta=0.2).sampling
    assert surprised == Sampling(mirostat=2, mirostat_tau=4, mirostat_eta=0.2)


def test_roles_parts_and_names() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "name": "Ann",
        },
        {"role": "assistant", "content": "c", "tool_calls": None},
        {"role": "tool", "content": "", "tool_call_id": "x"},
    ]
    assert chat(messages=messages).messages == (
        Message(Role.SYSTEM, "be brief"),
        Message(Role.USER, "ab", "Ann"),
        Message(Role.ASSISTANT, "c"),
        Message(Role.TOOL, ""),
    )


def test_refusals_of_another_server_are_what_was_said() -> None:
    whole = {"role": "assistant", "content": None, "refusal": "No."}
    part = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    for refused in (whole, part):
        assert chat(messages=[USER, refused, USER]).messages[1] == Message(Role.ASSISTANT, "No.")


def test_lengths_and_stops() -> None:
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6
    assert completion(max_tokens=7).max_tokens == 7
    assert chat(stop="END").stop == ("END",)
    assert chat(stop=["a", "b", "a"]).stop == ("a", "b")
    assert chat(stop=None).stop == chat(stop=[]).stop == ()
    assert len(chat(stop=[str(n) for n in range(16)]).stop) == 16


def test_budget_and_the_rest_of_tidegates_inputs() -> None:
    said = {"ttft_ms": 300, "tpot_ms": 25.5, "total_ms": 2000, "target": 0.95, "session": "Gespräch 1"}
    asked = chat(tidegate=said)
    assert asked.budget == Budget(300, 25.5, 2000, 0.95)
    assert asked.session_id == "Gespräch 1"


HARMLESS: list[dict[str, Any]] = [
    {"n": 1},
    {"n": None},
    {"tools": []},
    {"tools": None, "tool_choice": None},
    {"tool_choice": "auto"},
    {"tool_choice": "none", "parallel_tool_calls": True},
    {"response_format": {"type": "text"}},
    {"response_format": None},
    {"logprobs": False, "top_logprobs": 0},
    {"logit_bias": {}},
    {"modalities": ["text"]},
    {"store": False, "metadata": {"a": "b"}, "service_tier": "auto", "something_new": [1]},
    {"user": "u", "stream": None, "stream_options": None},
    {"tidegate": None},
    {"tidegate": {}},
]


@pytest.mark.parametrize("members", HARMLESS)
def test_harmless_values_change_nothing(members: dict[str, Any]) -> None:
    assert chat(**members) == chat()


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"n": True}, "n"),
    ({"n": 0}, "n"),
    ({"functions": [{}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"prediction": {"type": "content"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    (
        {"messages": [USER, USER | {"content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[1].content",
    ),
]


@pytest.mark.parametrize(("members", "param"), UNSUPPORTED)
def test_unsupported_things_are_refused_by_name(members: dict[str, Any], param: str) -> None:
    with pytest.raises(ServeError) as caught:
        chat(**members)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert (caught.value.param, caught.value.reason) == (param, "UNSUPPORTED_PARAMETER")
    assert "not supported" in caught.value.message or "only text" in caught.value.message


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_unsupported_things_of_completions(members: dict[str, Any], param: str) -> None:
    with pytest.raises(ServeError) as caught:
        completion(**members)
    assert (caught.value.param, caught.value.reason) == (param, "UNSUPPORTED_PARAMETER")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [USER] * (MAX_MESSAGES + 1)}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [USER | {"content": None}]}, "messages[0].content"),
    ({"messages": [USER | {"content": 5}]}, "messages[0].content"),
    ({"messages": [USER | {"content": ["x"]}]}, "messages[0].content"),
    ({"messages": [USER | {"content": [{"type": "text"}]}]}, "messages[0].content"),
    ({"messages": [USER | {"name": 5}]}, "messages[0].name"),
    ({"model": 5}, "model"),
    ({"model": "m" * 257}, "model"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.1}, "min_p"),
    ({"mirostat": 3}, "mirostat"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"repeat_penalty": 0}, "repeat_penalty"),
    ({"seed": 2**64}, "seed"),
    ({"seed": 1.0}, "seed"),
    ({"stop": 5}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x" * 257]}, "stop"),
    ({"stop": ["a", 1]}, "stop"),
    ({"stop": [str(n) for n in range(17)]}, "stop"),
    ({"user": 5}, "user"),
    ({"tidegate": "fast"}, "tidegate"),
    ({"tidegate": {"ttft_ms": "300"}}, "tidegate.ttft_ms"),
    ({"tidegate": {"ttft_ms": 0}}, "tidegate.ttft_ms"),
    ({"tidegate": {"ttft_ms": True}}, "tidegate.ttft_ms"),
    ({"tidegate": {"target": 1}}, "tidegate.target"),
    ({"tidegate": {"quality": -0.1}}, "tidegate.quality"),
    ({"tidegate": {"placement": "moon"}}, "tidegate.placement"),
    ({"tidegate": {"placement": 1}}, "tidegate.placement"),
    ({"tidegate": {"on_miss": ""}}, "tidegate.on_miss"),
    ({"tidegate": {"priority": 11}}, "tidegate.priority"),
    ({"tidegate": {"session": "a\nb"}}, "tidegate.session"),
    ({"tidegate": {"session": ""}}, "tidegate.session"),
    ({"tidegate": {"data_class": "two words"}}, "tidegate.data_class"),
    ({"tidegate": {"explain": "yes"}}, "tidegate.explain"),
    ({"tidegate": {"data-class": "restricted"}}, "tidegate.data-class"),
]


@pytest.mark.parametrize(("members", "param"), WRONG)
def test_wrong_values_are_named(members: dict[str, Any], param: str) -> None:
    with pytest.raises(ServeError) as caught:
        chat(**members)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.param == param
    assert param in caught.value.message


def test_messages_of_refusals_hold_no_prompt_text() -> None:
    secret = "my secret"
    for body in (
        {"messages": [{"role": "user", "content": {"text": secret}}]},
        {"messages": [{"role": secret, "content": secret}]},
        {"messages": [{"role": "user", "content": [{"type": secret, "text": secret}]}]},
        {"messages": secret},
    ):
        with pytest.raises(ServeError) as caught:
            parse_body(ChatBody, json.dumps(body).encode())
        assert secret not in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        b'{"messages": [' + b"{}," * 50_001 + b"{}]}",
        b'{"messages": [{"role": "user", "content": [' + b"{}," * 50_001 + b"{}]}]}",
        b'{"tidegate": {' + b",".join(b'"k%d":1' % n for n in range(50_002)) + b"}}",
    ],
)
def test_a_body_of_endless_structure_is_refused_unread(data: bytes) -> None:
    with pytest.raises(ServeError) as caught:
        parse_body(ChatBody, data)
    assert caught.value.reason == "TOO_MANY_VALUES"


def test_commas_and_braces_in_text_are_no_structure() -> None:
    text = '{[,"\\"' * 20_000
    asked = chat(messages=[USER | {"content": text}])
    assert asked.messages[0].content == text


def test_an_endless_string_is_searched_once() -> None:
    # Quadratic search would take minutes here.
    assert not has_more_values(b'"' + b'\\",' * 500_000, 10)


def test_headers_are_read_in_any_case_and_outputs_are_ignored() -> None:
    headers = CIMultiDict(
        {"X-TIDEGATE-TTFT-MS": "250", "x-tidegate-explain": "true", "x-tidegate-node": "edge-1"}
    )
    assert parse_headers(headers) == TidegateInputs(ttft_ms=250, explain=True)
    assert parse_headers(CIMultiDict({"accept": "*/*"})) is NO_INPUTS


def test_an_input_header_given_twice_is_refused() -> None:
    headers = CIMultiDict([("x-tidegate-data-class", "public"), ("X-Tidegate-Data-Class", "restricted")])
    with pytest.raises(ServeError) as caught:
        parse_headers(headers)
    assert caught.value.param == "x-tidegate-data-class"


def test_reading_time_counts_against_the_deadline() -> None:
    body = parse_body(ChatBody, json.dumps({"messages": [USER]}).encode())
    inputs = TidegateInputs(deadline_ms=100)
    asked = to_request(body, inputs, request_id="r", tenant="t", elapsed_ms=40)
    assert asked.remaining_ms == 60
    with pytest.raises(ServeError) as caught:
        to_request(body, inputs, request_id="r", tenant="t", elapsed_ms=100)
    assert caught.value.code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        ("a", True),
        ("A.b_c:d-9", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        (None, False),
        ("a\n", False),
    ],
)
def test_request_ids(value: str | None, valid: bool) -> None:
    assert valid_request_id(value) is valid
