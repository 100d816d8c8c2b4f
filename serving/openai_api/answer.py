"""Running one request against the backend and sending what comes, whole or as server-sent events."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from serving.openai_api.backend import GenerateBackend
from serving.openai_api.errors import serve_error_body
from serving.openai_api.lifetime import Answers
from serving.openai_api.render import (
    DONE,
    AnswerHead,
    Shape,
    WholeText,
    sse,
    tidegate_body,
)
from serving.openai_api.tools import Tools
from serving.openai_api.wire import ReaderLost, SseStream, failure_place
from tidegate.routing.domain import (
    Accepted,
    Chunk,
    Code,
    Explanation,
    Finished,
    FinishReason,
    GenerateEvent,
    GenerateRequest,
    Restarted,
    Route,
    ServeError,
    TokenLogprob,
)
from tidegate.wire import summary

log = logging.getLogger("serving.openai_api")


@asynccontextmanager
async def running(
    backend: GenerateBackend, asked: GenerateRequest
) -> AsyncIterator[AsyncIterator[GenerateEvent]]:
    """The backend's events; leaving closes them, which cancels what still runs."""
    events = backend.generate(asked)
    try:
        yield events
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


class Answer:
    """What is known of one answer so far."""

    def __init__(
        self, asked: GenerateRequest, created_s: int, shape: type[Shape], tools: Tools | None = None
    ) -> None:
        self._asked = asked
        self._tools = tools
        self._created_s = created_s
        self._shape = shape
        self.route: Route | None = None
        self._explanation: Explanation | None = None

    def note(self, event: Accepted | Restarted) -> None:
        self.route = event.route
        if isinstance(event, Accepted):
            self._explanation = event.explanation

    def render(self, *, include_usage: bool = False) -> Shape:
        """Fixes id, created, model and fingerprint for the rest of the answer."""
        route = self.route
        head = AnswerHead(
            request_id=self._asked.request_id,
            created_s=self._created_s,
            model=route.model if route else self._asked.model,
            fingerprint=f"fp_{route.variant_digest[:12]}" if route and route.variant_digest else "",
        )
        return self._shape(head, include_usage=include_usage, tools=self._tools)

    def headers(self, finished: Finished | None = None) -> dict[str, str]:
        """What is known when they are sent: of a streamed answer only the route."""
        headers = summary.of_route(self.route) if self.route else {}
        return headers if finished is None else headers | summary.of_outcome(finished)

    def tidegate(self, finished: Finished) -> dict[str, object]:
        return tidegate_body(self._asked.request_id, self.route, finished, self._explanation)


def _checked(finished: Finished) -> Finished:
    if finished.reason is FinishReason.CANCELLED:
        raise ServeError(Code.CANCELLED, "The generation was cancelled before its end")
    return finished


def _cut_short() -> ServeError:
    return ServeError(Code.INTERNAL, "The answer ended without its last event", reason="INCOMPLETE_ANSWER")


async def collect(events: AsyncIterator[GenerateEvent], answer: Answer) -> WholeText:
    """The whole text. A restart voids what came before, unseen by the client. Raises ServeError.

    Events are read to their natural end: closing them after the last one would look like a cancel.
    """
    texts: list[str] = []
    odds: list[TokenLogprob] = []
    finished: Finished | None = None
    async for event in events:
        if isinstance(event, Chunk):
            texts.append(event.text)
            odds += event.logprobs
        elif isinstance(event, Finished):
            finished = event
        else:
            if isinstance(event, Restarted):
                texts.clear()
                odds.clear()
            answer.note(event)
    if finished is None:
        raise _cut_short()
    return WholeText("".join(texts), tuple(odds), _checked(finished))


class StreamedAnswer:
    """One SSE answer.

    Nothing is sent before the first token (or an early `accepted`), so that a failure until then still gets
    its own HTTP status; after it a failure is an error chunk.
    """

    def __init__(
        self, answer: Answer, answers: Answers, stream: SseStream, *, include_usage: bool, early: bool
    ) -> None:
        self._answer = answer
        self._answers = answers
        self._stream = stream
        self._include_usage = include_usage
        self._early = early
        self._shape: Shape | None = None
        self._sent_text = False
        self._ended = False

    async def run(self, events: AsyncIterator[GenerateEvent]) -> web.StreamResponse:
        """Raises ReaderLost, and while nothing was sent whatever the backend raised."""
        try:
            async with self._answers.one():
                await self._relay(events)
        except ServeError as error:
            if self._shape is None:
                raise
            await self._fail(error)
        except ReaderLost:
            raise
        except Exception as error:
            if self._shape is None:
                raise
            log.error("stream failed: %s", failure_place(error))
            await self._fail(ServeError(Code.INTERNAL, "The server failed while it answered"))
        return self._stream.response

    async def _relay(self, events: AsyncIterator[GenerateEvent]) -> None:
        async for event in events:
            if isinstance(event, Chunk):
                if self._shape is None:
                    await self._open(event)
                elif data := self._shape.chunk(event):
                    self._sent_text = True
                    await self._stream.send(data)
            elif isinstance(event, Finished):
                await self._close(_checked(event))
                break
            elif isinstance(event, Restarted):
                if self._sent_text:
                    raise ServeError(
                        Code.UNAVAILABLE, f"The answer starts again ({event.cause})", reason="RESTARTED"
                    )
                self._answer.note(event)
            else:
                self._answer.note(event)
                if self._early:
                    await self._open()
        else:
            raise _cut_short()
        # Read to the natural end: closing the events after their last one would look like a cancel.
        async for _ in events:
            pass

    async def _open(self, chunk: Chunk | None = None) -> Shape:
        self._shape = shape = self._answer.render(include_usage=self._include_usage)
        first = b"" if chunk is None else shape.chunk(chunk)
        self._sent_text = bool(first)
        await self._stream.open(self._answer.headers(), shape.opening() + first)
        return shape

    async def _close(self, finished: Finished) -> None:
        shape = self._shape or await self._open()
        last = shape.closing(finished, self._answer.tidegate(finished))
        if self._include_usage:
            last += shape.usage(finished.usage)
        self._ended = True
        await self._stream.end(last + DONE)

    async def _fail(self, error: ServeError) -> None:
        if not self._ended:
            self._ended = True
            await self._stream.end(sse(serve_error_body(error)))
