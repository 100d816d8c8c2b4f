"""The unmodified openai SDK against the front."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai_front_fakes import CHAT, DONE, ROUTE, ScriptedBackend, Step, chunks, serve

from tidegate.routing.domain import Accepted, Code, ServeError

TEXT = "Hello é😀"
MESSAGES: Any = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def sdk(
    steps: Sequence[Step] | None = None,
) -> AsyncIterator[tuple[Any, ScriptedBackend]]:
    backend = ScriptedBackend(steps)
    async with serve(backend) as front:
        async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="sesame") as client:
            yield client, backend


async def test_chat() -> None:
    async with sdk() as (client, _):
        answer = await client.chat.completions.create(
            model="smollm2", messages=MESSAGES, extra_body={"tidegate": {"ttft_ms": 300}}
        )
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    assert answer.model_extra is not None
    assert answer.model_extra["tidegate"]["budget"] == "met"


async def test_chat_streamed_with_usage() -> None:
    async with sdk() as (client, backend):
        stream = await client.chat.completions.create(
            model="smollm2",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
            seed=3,
            stop="X",
        )
        events = [event async for event in stream]
    assert "".join(e.choices[0].delta.content or "" for e in events if e.choices) == TEXT
    assert [e.usage.total_tokens for e in events if e.usage] == [10]
    assert len({(e.id, e.created, e.model) for e in events}) == 1
    assert backend.requests[0].sampling.seed == 3
    assert backend.requests[0].stop == ("X",)


async def test_chat_stream_helper() -> None:
    async with sdk() as (client, _):
        async with client.chat.completions.stream(model="smollm2", messages=MESSAGES) as stream:
            final = await stream.get_final_completion()
    assert final.choices[0].message.content == TEXT


async def test_completions() -> None:
    async with sdk() as (client, _):
        answer = await client.completions.create(model="smollm2", prompt="once", max_tokens=3)
        assert answer.choices[0].text == TEXT
        stream = await client.completions.create(model="smollm2", prompt="once", stream=True)
        events = [event async for event in stream]
    assert "".join(e.choices[0].text for e in events) == TEXT
    assert events[-1].choices[0].finish_reason == "stop"


async def test_models() -> None:
    async with sdk() as (client, _):
        assert [model.id async for model in client.models.list()] == ["smollm2", "org/big"]
        assert (await client.models.retrieve("org/big")).owned_by == "us"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("none")


async def test_the_sync_client() -> None:
    backend = ScriptedBackend()

    def use(url: str) -> tuple[str | None, str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sesame") as client:
            answer = client.chat.completions.create(model="smollm2", messages=MESSAGES)
            stream = client.chat.completions.create(model="smollm2", messages=MESSAGES, stream=True)
            text = "".join(event.choices[0].delta.content or "" for event in stream)
        return answer.choices[0].message.content, text

    async with serve(backend) as front:
        assert await asyncio.to_thread(use, front.url) == (TEXT, TEXT)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.INVALID_ARGUMENT, openai.BadRequestError),
        (Code.UNAUTHENTICATED, openai.AuthenticationError),
        (Code.PERMISSION_DENIED, openai.PermissionDeniedError),
        (Code.NOT_FOUND, openai.NotFoundError),
        (Code.FAILED_PRECONDITION, openai.UnprocessableEntityError),
        (Code.RESOURCE_EXHAUSTED, openai.RateLimitError),
        (Code.UNIMPLEMENTED, openai.InternalServerError),
        (Code.DEADLINE_EXCEEDED, openai.InternalServerError),
    ],
)
async def test_errors_keep_their_class_and_are_not_retried_in_vain(
    code: Code, kind: type[openai.APIStatusError]
) -> None:
    async with sdk([ServeError(code, "because", reason="WHY")]) as (client, backend):
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(model="smollm2", messages=MESSAGES, stream=True)
    assert caught.value.code == "why" or code is Code.NOT_FOUND
    assert "because" in str(caught.value)
    assert caught.value.request_id
    assert len(backend.requests) == 1


async def test_overload_is_retried_after_the_wait_it_names() -> None:
    full = ServeError(Code.RESOURCE_EXHAUSTED, "full", retry_after_ms=5)
    async with sdk([full]) as (client, backend):
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="smollm2", messages=MESSAGES)
    assert caught.value.response.headers["retry-after-ms"] == "5"
    assert len(backend.requests) == 3


async def test_a_late_error_is_raised_to_the_reader() -> None:
    late = ServeError(Code.UNAVAILABLE, "the node was lost", reason="NODE_LOST")
    async with sdk([Accepted(ROUTE), *chunks("Hel"), late]) as (client, _):
        stream = await client.chat.completions.create(model="smollm2", messages=MESSAGES, stream=True)
        seen = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
        with pytest.raises(openai.APIError, match="the node was lost") as caught:
            await anext(stream)
    assert seen == ["", "Hel"]
    assert caught.value.code == "node_lost"


async def test_closing_the_stream_cancels() -> None:
    async with sdk([Accepted(ROUTE), *chunks("a"), asyncio.Event(), DONE]) as (client, backend):
        stream = await client.chat.completions.create(model="smollm2", messages=MESSAGES, stream=True)
        async for event in stream:
            if event.choices[0].delta.content:
                break
        await stream.close()
        await asyncio.wait_for(backend.ended.wait(), 1)
    assert not backend.finished


async def test_many_at_once_on_one_client() -> None:
    async with sdk() as (client, backend):
        answers = await asyncio.gather(
            *(client.chat.completions.create(model=CHAT["model"], messages=MESSAGES) for _ in range(20))
        )
    assert len({answer.id for answer in answers}) == 20
    assert {request.request_id for request in backend.requests} == {
        answer.id.removeprefix("chatcmpl-") for answer in answers
    }
