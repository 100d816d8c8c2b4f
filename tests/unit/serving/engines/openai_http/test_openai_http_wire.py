from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from serving.engines.openai_http.failures import UpstreamFailed, failure_of_status
from serving.engines.openai_http.sse import SseEvent
from serving.engines.openai_http.wire import Delta, parse_event, parse_usage, upstream_request
from tidegate.routing.domain import (
    AttemptKey,
    Cause,
    Failure,
    FinishReason,
    InputKind,
    Message,
    Role,
    Sampling,
    Usage,
    Work,
)
from tidegate.routing.prefix import canonical_bytes

TEXT = Work(AttemptKey("r", 1), "t", "d", InputKind.TEXT, "héllo".encode(), Sampling(), 0)


def body_of(work: Work, include_usage: bool = True) -> dict[str, Any]:
    body: dict[str, Any] = upstream_request(work, model="m", include_usage=include_usage).body
    return body


def test_only_what_is_set_is_sent() -> None:
    request = upstream_request(TEXT, model="m", include_usage=False)
    assert request.path == "/completions"
    assert request.body == {"model": "m", "stream": True, "prompt": "héllo"}


def test_everything_set_is_sent_under_the_servers_names() -> None:
    sampling = Sampling(
        temperature=0.0,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        repeat_penalty=1.1,
        seed=0,
        mirostat=1,
        mirostat_tau=3.0,
    )
    body = body_of(replace(TEXT, sampling=sampling, max_tokens=5, stop=("a", "b")))
    assert body == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "prompt": "héllo",
        "max_tokens": 5,
        "stop": ["a", "b"],
        "temperature": 0.0,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "repeat_penalty": 1.1,
        "repetition_penalty": 1.1,
        "seed": 0,
        "mirostat": 1,
        "mirostat_tau": 3.0,
    }


def test_a_chat_becomes_messages() -> None:
    messages = [Message(Role.SYSTEM, "be <|im_end|> brief"), Message(Role.USER, "hi", name="ann")]
    work = replace(TEXT, input_kind=InputKind.CHAT, input=canonical_bytes(messages))
    request = upstream_request(work, model="m", include_usage=True)
    assert request.path == "/chat/completions"
    assert request.body["messages"] == [
        {"role": "system", "content": "be <|im_end|> brief"},
        {"role": "user", "content": "hi", "name": "ann"},
    ]


@pytest.mark.parametrize("broken", [b"", b"\xff", b'{"a": 1}\n', b'["nobody","","x"]\n'])
def test_a_broken_chat_is_a_value_error(broken: bytes) -> None:
    with pytest.raises(ValueError):
        body_of(replace(TEXT, input_kind=InputKind.CHAT, input=broken))


def event(chunk: Any, name: str = "") -> Delta:
    return parse_event(SseEvent(json.dumps(chunk), name))


def chat(content: str | None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": content, **more}}]}


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        (chat("hi"), Delta("hi", 1)),
        (chat(None, role="assistant"), Delta()),
        (chat("", role="assistant"), Delta()),
        (chat(None, reasoning_content="hm"), Delta("", 1)),
        ({"choices": [{"text": "hi", "finish_reason": None}]}, Delta("hi", 1)),
        ({"choices": [{"text": "", "finish_reason": "length"}]}, Delta(finish=FinishReason.LENGTH)),
        ({"choices": [{"delta": {}, "finish_reason": "stop"}]}, Delta(finish=FinishReason.STOP)),
        ({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}, Delta(finish=FinishReason.STOP)),
        ({"choices": [], "usage": {"prompt_tokens": 3}}, Delta(usage=Usage(3, 0, 0))),
        ({"choices": [{"delta": {"content": "x"}}], "error": None}, Delta("x", 1)),
        (chat("ż🌊"), Delta("ż🌊", 1)),
        (chat("\ud83c"), Delta("\ufffd", 1)),
    ],
)
def test_chunks(chunk: Any, expected: Delta) -> None:
    assert event(chunk) == expected


def test_done_ends_the_stream() -> None:
    assert parse_event(SseEvent("[DONE]")) == Delta(done=True)


@pytest.mark.parametrize(
    ("chunk", "name", "cause"),
    [
        ({"error": {"message": "secret prompt", "code": 400}}, "", Cause.INVALID_INPUT),
        ({"error": {"message": "secret prompt", "code": "503"}}, "", Cause.OVERLOADED),
        ({"error": {"message": "secret prompt", "type": "BadThing"}}, "", Cause.UPSTREAM),
        ({"error": "secret prompt"}, "", Cause.UPSTREAM),
        ({"object": "error", "message": "secret prompt", "code": 500}, "", Cause.UPSTREAM),
        ({"message": "secret prompt", "code": 400}, "error", Cause.INVALID_INPUT),
        ({"choices": [{"delta": {}, "finish_reason": "abort"}]}, "", Cause.UPSTREAM),
    ],
)
def test_errors_inside_a_stream(chunk: Any, name: str, cause: Cause) -> None:
    failure = event(chunk, name).finish
    assert isinstance(failure, Failure)
    assert failure.cause is cause
    assert "secret" not in failure.detail


@pytest.mark.parametrize(
    "data",
    [
        "not json",
        "[1]",
        '{"choices": 5}',
        '{"choices": [5]}',
        '{"choices": [{"delta": 5}]}',
        '{"choices": [{"delta": {"content": 5}}]}',
    ],
)
def test_garbage_is_an_upstream_failure(data: str) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        parse_event(SseEvent(data))
    assert failed.value.failure.cause is Cause.UPSTREAM


def test_usage_survives_odd_values() -> None:
    assert (
        parse_usage({"prompt_tokens": -1, "completion_tokens": True, "prompt_tokens_details": None})
        == Usage()
    )
    assert parse_usage({"prompt_tokens_details": {"cached_tokens": 5}, "prompt_tokens": 9}) == Usage(9, 0, 5)
    assert parse_usage({"prompt_tokens": 10**30, "completion_tokens": 2**31 - 1}) == Usage(0, 2**31 - 1, 0)
    assert parse_usage("3 tokens") is None


@pytest.mark.parametrize(
    ("status", "cause", "word"),
    [
        (400, Cause.INVALID_INPUT, "refused the input"),
        (413, Cause.INVALID_INPUT, "refused the input"),
        (422, Cause.INVALID_INPUT, "refused the input"),
        (429, Cause.OVERLOADED, "overloaded"),
        (503, Cause.OVERLOADED, "overloaded"),
        (401, Cause.UPSTREAM, "API key"),
        (403, Cause.UPSTREAM, "API key"),
        (404, Cause.UPSTREAM, "no such model"),
        (307, Cause.UPSTREAM, "redirects"),
        (500, Cause.UPSTREAM, "failed"),
    ],
)
def test_statuses(status: int, cause: Cause, word: str) -> None:
    body = json.dumps({"error": {"message": "the prompt 'secret' is", "code": "some_word"}})
    failure = failure_of_status(status, body.encode())
    assert failure.cause is cause
    assert word in failure.detail
    assert "some_word" in failure.detail
    assert "secret" not in failure.detail


@pytest.mark.parametrize(
    "error",
    [{"code": "context_length_exceeded"}, {"code": 400, "type": "exceed_context_size_error"}],
    ids=["openai", "llama-server"],
)
def test_a_prompt_beyond_the_context_is_told_apart(error: dict[str, Any]) -> None:
    assert failure_of_status(400, json.dumps({"error": error}).encode()).cause is Cause.CONTEXT_LENGTH
    assert failure_of_status(500, json.dumps({"error": error}).encode()).cause is Cause.UPSTREAM


@pytest.mark.parametrize(
    "body", [b"", b"<html>secret</html>", b"[]", b'{"error": {"code": "my secret prompt"}}']
)
def test_only_an_identifier_is_kept_of_an_error_body(body: bytes) -> None:
    assert "secret" not in failure_of_status(500, body).detail
