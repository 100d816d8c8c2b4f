"""A scripted backend and a real server around it."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Middleware

from serving.openai_api import Caller, FrontOptions, GenerateBackend, ModelCard, build_routes, make_runner
from tidegate.routing.domain import (
    Accepted,
    BudgetOutcome,
    Chunk,
    Code,
    Finished,
    FinishReason,
    GenerateEvent,
    GenerateRequest,
    Route,
    ServeError,
    Tier,
    Timings,
    Usage,
)

KEY = "Bearer sesame"
NOW_S = 1_700_000_000
ROUTE = Route(
    node_id="a1b2",
    node_name="edge-1",
    tier=Tier.EDGE,
    model="smollm2",
    variant_digest="0123456789abcdef",
    predicted_ttft_ms=80.0,
    why="cheapest that meets the budget",
)
DONE = Finished(
    FinishReason.STOP, Usage(7, 3, 4), Timings(ttft_ms=81.5, total_ms=120.0), BudgetOutcome.MET, attempts=2
)
CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}


def chunks(*texts: str) -> list[Chunk]:
    return [Chunk(1, index, 1, text) for index, text in enumerate(texts)]


def hello() -> list[GenerateEvent]:
    return [Accepted(ROUTE), *chunks("Hel", "", "lo é😀"), DONE]


Step = GenerateEvent | Exception | asyncio.Event


class ScriptedBackend:
    """Yields its steps: events as they are, exceptions raised, asyncio.Events waited for.

    `started` and `ended` are set when a generation was begun and left, `finished` says whether its script had
    run to the end.
    """

    def __init__(self, steps: Sequence[Step] | None = None) -> None:
        self.steps: Sequence[Step] = hello() if steps is None else steps
        self.requests: list[GenerateRequest] = []
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.finished = False

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        self.requests.append(request)
        self.started.set()
        try:
            for step in self.steps:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
            self.finished = True
        finally:
            self.ended.set()

    def models(self, tenant: str) -> Sequence[ModelCard]:
        return [
            ModelCard("smollm2", aliases=("small",), context_tokens=2048),
            ModelCard("org/big", owned_by="us"),
        ]


def authenticate(authorization: str | None) -> Caller:
    # As a real one does; it raises on characters beyond ASCII.
    if authorization is not None and hmac.compare_digest(authorization, KEY):
        return Caller(tenant="acme")
    raise ServeError(Code.UNAUTHENTICATED, "Incorrect API key provided", reason="INVALID_API_KEY")


class Front:
    """One running front. `url` ends without a slash."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._session = session

    async def post(
        self, body: Any, path: str = "/v1/chat/completions", headers: dict[str, str] | None = None
    ) -> tuple[int, Any, Any]:
        """Status, parsed body (text for SSE), headers. Bytes are sent as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Authorization": KEY, "Content-Type": "application/json"} | (headers or {})
        async with self._session.post(self.url + path, data=data, headers=sent) as response:
            text = await response.text()
            parsed = json.loads(text) if response.content_type == "application/json" else text
            return response.status, parsed, response.headers

    async def request(
        self, method: str, path: str, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, Any]:
        sent = {"Authorization": KEY} | (headers or {})
        async with self._session.request(method, self.url + path, headers=sent) as response:
            return response.status, await response.json(), response.headers


@asynccontextmanager
async def serve(
    backend: GenerateBackend,
    options: FrontOptions = FrontOptions(),  # noqa: B008 - immutable
    middlewares: Sequence[Middleware] = (),
) -> AsyncIterator[Front]:
    async def admin_page(request: web.Request) -> web.Response:
        raise web.HTTPForbidden(reason="this needs an admin key")

    app = web.Application(middlewares=middlewares)
    app.router.add_get("/admin", admin_page)
    build_routes(app, backend, authenticate, options, wall_clock=lambda: NOW_S)
    runner = make_runner(app, options)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            yield Front(runner.addresses[0][1], session)
    finally:
        await runner.cleanup()


def raw_request(body: bytes, *, path: str = "/v1/chat/completions", length: int | None = None) -> bytes:
    """An HTTP request as bytes; `length` lies about the body's."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def sse_events(text: str) -> list[Any]:
    """The data of each event: parsed JSON, and "[DONE]" as it is."""
    assert text.endswith("\n\n")
    events: list[Any] = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        assert block.startswith("data: ")
        data = block.removeprefix("data: ")
        events.append(data if data == "[DONE]" else json.loads(data))
    return events
