"""Errors in OpenAI's shape, early with a status and late as an error chunk."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from openai_front_fakes import (
    CHAT,
    DONE,
    ROUTE,
    ScriptedBackend,
    Step,
    chunks,
    raw_request,
    serve,
    sse_events,
)

from serving.openai_api.app import _listens_on_loopback
from serving.openai_api.errors import serve_error_body, serve_error_response
from tidegate.routing.domain import Accepted, Code, Finished, FinishReason, ServeError, Timings, Usage

STATUS = [
    (Code.INVALID_ARGUMENT, 400, "invalid_request_error"),
    (Code.UNAUTHENTICATED, 401, "authentication_error"),
    (Code.PERMISSION_DENIED, 403, "permission_error"),
    (Code.NOT_FOUND, 404, "invalid_request_error"),
    (Code.ALREADY_EXISTS, 409, "invalid_request_error"),
    (Code.FAILED_PRECONDITION, 422, "invalid_request_error"),
    (Code.RESOURCE_EXHAUSTED, 429, "rate_limit_error"),
    (Code.CANCELLED, 499, "cancelled_error"),
    (Code.INTERNAL, 500, "server_error"),
    (Code.UNIMPLEMENTED, 501, "server_error"),
    (Code.UNAVAILABLE, 503, "server_error"),
    (Code.DEADLINE_EXCEEDED, 504, "timeout_error"),
]


def test_the_table_has_every_code() -> None:
    assert {code for code, _, _ in STATUS} == set(Code)


@pytest.mark.parametrize(("code", "status", "kind"), STATUS)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_early_error_has_its_status(code: Code, status: int, kind: str, stream: bool) -> None:
    backend = ScriptedBackend([Accepted(ROUTE), ServeError(code, "no", reason="SOME_REASON", param="model")])
    async with serve(backend) as front:
        got, body, headers = await front.post(CHAT | {"stream": stream})
    assert got == status
    assert body == {"error": {"message": "no", "type": kind, "param": "model", "code": "some_reason"}}
    assert headers["x-request-id"]
    assert backend.ended.is_set()


@pytest.mark.parametrize(
    ("retry_after_ms", "seconds", "ms"), [(1.0, "1", "1"), (1000.0, "1", "1000"), (1000.5, "2", "1001")]
)
def test_retry_after_is_rounded_up(retry_after_ms: float, seconds: str, ms: str) -> None:
    error = ServeError(Code.RESOURCE_EXHAUSTED, "full", retry_after_ms=retry_after_ms)
    headers = serve_error_response(error).headers
    assert (headers["Retry-After"], headers["retry-after-ms"]) == (seconds, ms)
    assert "x-should-retry" not in headers


def test_a_retry_that_cannot_help_is_advised_against() -> None:
    for code in (Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED):
        assert serve_error_response(ServeError(code, "no")).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in serve_error_response(ServeError(Code.UNAVAILABLE, "no")).headers


def test_facts_for_programs_stand_beside_openais_members() -> None:
    error = ServeError(
        Code.RESOURCE_EXHAUSTED, "too tight", retry_after_ms=250, details={"predicted_ttft_ms": "410"}
    )
    assert serve_error_body(error)["error"]["tidegate"] == {"predicted_ttft_ms": "410", "retry_after_ms": 250}


def test_an_unknown_model_has_openais_code() -> None:
    assert serve_error_body(ServeError(Code.NOT_FOUND, "no"))["error"]["code"] == "model_not_found"


def test_a_prompt_beyond_the_context_has_openais_code() -> None:
    error = ServeError(Code.INVALID_ARGUMENT, "too long", reason="CONTEXT_LENGTH")
    assert serve_error_body(error)["error"]["code"] == "context_length_exceeded"


async def test_a_late_error_is_a_chunk_and_the_stream_is_not_done() -> None:
    late = ServeError(Code.UNAVAILABLE, "the node was lost", reason="NODE_LOST")
    backend = ScriptedBackend([Accepted(ROUTE), *chunks("Hel"), late])
    async with serve(backend) as front:
        status, text, _ = await front.post(CHAT | {"stream": True})
        whole_status, whole, _ = await front.post(CHAT)
    assert status == 200
    *_, delta, last = sse_events(text)
    assert delta["choices"][0]["delta"]["content"] == "Hel"
    assert last == {
        "error": {"message": "the node was lost", "type": "server_error", "param": None, "code": "node_lost"}
    }
    assert (whole_status, whole["error"]["code"]) == (503, "node_lost")


@pytest.mark.parametrize(
    "steps",
    [
        [Accepted(ROUTE), *chunks("a"), RuntimeError("secret prompt")],
        [Accepted(ROUTE), *chunks("a"), TimeoutError("secret prompt")],
        [Accepted(ROUTE), *chunks("a"), ConnectionResetError("secret prompt")],
        [Accepted(ROUTE), *chunks("a")],
    ],
)
async def test_a_broken_backend_is_never_silent(steps: list[Step], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with serve(ScriptedBackend(steps)) as front:
            _, text, _ = await front.post(CHAT | {"stream": True})
            status, body, _ = await front.post(CHAT)
    assert sse_events(text)[-1]["error"]["type"] == "server_error"
    assert (status, body["error"]["type"]) == (500, "server_error")
    assert "secret prompt" not in caplog.text
    assert "secret prompt" not in text + json.dumps(body)


async def test_a_backend_failing_before_its_first_token_is_a_500() -> None:
    async with serve(ScriptedBackend([Accepted(ROUTE), RuntimeError("x")])) as front:
        status, body, _ = await front.post(CHAT | {"stream": True})
    assert (status, body["error"]["code"]) == (500, "internal")


async def test_a_failure_after_the_end_does_not_reach_the_client() -> None:
    async with serve(ScriptedBackend([Accepted(ROUTE), *chunks("a"), DONE, RuntimeError("x")])) as front:
        _, text, _ = await front.post(CHAT | {"stream": True})
    assert sse_events(text)[-1] == "[DONE]"


async def test_a_cancelled_generation_is_no_answer() -> None:
    steps: list[Step] = [Accepted(ROUTE), *chunks("a"), Finished(FinishReason.CANCELLED, Usage(), Timings())]
    async with serve(ScriptedBackend(steps)) as front:
        _, text, _ = await front.post(CHAT | {"stream": True})
        status, body, _ = await front.post(CHAT)
    assert sse_events(text)[-1]["error"]["type"] == "cancelled_error"
    assert (status, body["error"]["type"]) == (499, "cancelled_error")


async def test_early_accept_opens_the_stream_and_turns_errors_late() -> None:
    steps: list[Step] = [Accepted(ROUTE), ServeError(Code.UNAVAILABLE, "gone")]
    async with serve(ScriptedBackend(steps)) as front:
        status, text, headers = await front.post(CHAT | {"stream": True, "tidegate": {"early_accept": True}})
    assert status == 200
    assert headers["x-tidegate-tier"] == "edge"
    opening, last = sse_events(text)
    assert opening["choices"][0]["delta"]["role"] == "assistant"
    assert last["error"]["message"] == "gone"


ROUTES: list[tuple[str, str, int, str]] = [
    ("GET", "/v1/nothing", 404, "unknown_url"),
    ("POST", "/", 404, "unknown_url"),
    ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
    ("DELETE", "/v1/models", 405, "method_not_allowed"),
]


@pytest.mark.parametrize(("method", "path", "status", "code"), ROUTES)
async def test_wrong_addresses_have_the_shape(method: str, path: str, status: int, code: str) -> None:
    async with serve(ScriptedBackend()) as front:
        got, body, headers = await front.request(method, path)
    assert (got, body["error"]["code"]) == (status, code)
    assert headers["x-request-id"]
    if status == 405:
        assert headers["Allow"]


async def test_errors_of_other_routes_have_the_shape_too() -> None:
    async with serve(ScriptedBackend()) as front:
        status, body, _ = await front.request("GET", "/admin")
    assert status == 403
    assert body["error"] == {
        "message": "this needs an admin key",
        "type": "permission_error",
        "param": None,
        "code": "forbidden",
    }


@pytest.mark.parametrize("key", ["Bearer wrong", "", "Bearer sesamé"])
async def test_a_wrong_key_is_a_401_everywhere(key: str) -> None:
    backend = ScriptedBackend()
    async with serve(backend) as front:
        for method, path in (("GET", "/v1/models"), ("GET", "/v1/models/smollm2")):
            status, body, headers = await front.request(method, path, {"Authorization": key})
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
            assert headers["WWW-Authenticate"] == "Bearer"
        status, body, _ = await front.post(b"not even JSON", headers={"Authorization": key})
        assert (status, body["error"]["type"]) == (401, "authentication_error")
    assert backend.requests == []


BAD_BODIES: list[tuple[bytes | dict[str, Any], str | None, str]] = [
    (b"", None, "invalid_json"),
    (b"{", None, "invalid_json"),
    (b"[]", None, "invalid_json"),
    (b'"text"', None, "invalid_json"),
    (b'{"messages": "\xff"}', None, "invalid_json"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, "invalid_json"),
    (b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}", None, "invalid_json"),
    (b'{"messages": [{"role": "user", "content": "a"}], "x": ' + b"9" * 5000 + b"}", None, "invalid_json"),
    ({"model": "m"}, "messages", "missing_required_parameter"),
    (CHAT | {"tidegate": {"dataclass": "restricted"}}, "tidegate.dataclass", "unknown_parameter"),
    (CHAT | {"functions": [{}]}, "functions", "unsupported_parameter"),
    (CHAT | {"tool_choice": "any"}, "tool_choice", "invalid_value"),
    (CHAT | {"tool_choice": {"type": "custom"}}, "tool_choice.type", "invalid_value"),
    (CHAT | {"temperature": "1"}, "temperature", "invalid_type"),
]


@pytest.mark.parametrize(("body", "param", "code"), BAD_BODIES)
async def test_bad_bodies(body: bytes | dict[str, Any], param: str | None, code: str) -> None:
    backend = ScriptedBackend()
    async with serve(backend) as front:
        status, answer, _ = await front.post(body)
        assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, param, code)
        assert answer["error"]["type"] == "invalid_request_error"
        assert backend.requests == []
        assert (await front.post(CHAT))[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_only_json_is_taken(kind: str) -> None:
    async with serve(ScriptedBackend()) as front:
        status, body, _ = await front.post(CHAT, headers={"Content-Type": kind})
        assert (status, body["error"]["code"]) == (415, "unsupported_media_type")
        status, _, _ = await front.post(CHAT, headers={"Content-Type": "application/json; charset=utf-8"})
        assert status == 200


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-tidegate-ttft-ms", "soon"),
        ("x-tidegate-ttft-ms", "nan"),
        ("x-tidegate-total-ms", "-1"),
        ("x-tidegate-target", "1"),
        ("x-tidegate-placement", "moon"),
        ("x-tidegate-data-class", "a b"),
        ("x-tidegate-priority", "11"),
        ("x-tidegate-on-miss", "retry"),
        ("x-tidegate-quality", "1.1"),
        ("x-tidegate-deadline-ms", "0"),
        ("x-tidegate-dataclass", "restricted"),
    ],
)
async def test_bad_headers_are_named(header: str, value: str) -> None:
    backend = ScriptedBackend()
    async with serve(backend) as front:
        status, body, _ = await front.post(CHAT, headers={header: value})
    assert (status, body["error"]["param"]) == (400, header)
    assert backend.requests == []


def test_explanations_over_a_public_listener_need_an_admin() -> None:
    class Listener:
        def __init__(self, name: object) -> None:
            self._name = name

        def get_extra_info(self, _: str) -> object:
            return self._name

    assert _listens_on_loopback(Listener(("127.0.0.1", 1)))  # type: ignore[arg-type]
    assert _listens_on_loopback(Listener(("::1", 1, 0, 0)))  # type: ignore[arg-type]
    assert not _listens_on_loopback(Listener(("10.0.0.1", 1)))  # type: ignore[arg-type]
    assert not _listens_on_loopback(Listener("/run/socket"))  # type: ignore[arg-type]


async def test_raw_garbage_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with serve(ScriptedBackend()) as front:
            reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
            writer.write(raw_request(json.dumps(CHAT).encode()))
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            # A client that announced less than it sends: the rest is taken for the next request's head.
            writer.write(b"my secret prompt text\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 5)
            writer.close()
    assert b"HTTP/1.0 400" in answer
    assert "secret" not in caplog.text
    (record,) = [record for record in caplog.records if "Error handling request" in record.getMessage()]
    assert record.levelno == logging.INFO  # nothing that an operator could mend
