"""A small OpenAI-compatible server with scripted answers, for what a real one cannot be made to do."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

DONE = "[DONE]"


@dataclass(slots=True)
class Seen:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    peer: Any


class Reply:
    """Writes one streamed answer."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})

    async def raw(self, data: bytes) -> None:
        if not self._response.prepared:
            await self._response.prepare(self._request)
        await self._response.write(data)

    async def send(self, *events: dict[str, Any] | str) -> None:
        texts = (event if isinstance(event, str) else json.dumps(event) for event in events)
        await self.raw("".join(f"data: {text}\n\n" for text in texts).encode())

    async def words(self, *words: str) -> None:
        await self.send(*(delta(word) for word in words))

    async def end(self) -> web.StreamResponse:
        if not self._response.prepared:
            await self._response.prepare(self._request)
        return self._response

    def cut(self) -> None:
        """Drops the connection in the middle of the answer."""
        assert self._request.transport is not None
        self._request.transport.abort()


Script = Callable[[web.Request, Reply], Awaitable[web.StreamResponse]]


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "text": text, "finish_reason": None}]}


def finish(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": reason}]}


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    return {
        "choices": [],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


async def three_words(request: web.Request, reply: Reply) -> web.StreamResponse:
    await reply.words("one ", "two ", "three")
    await reply.send(finish(), usage(9, 3, 4), DONE)
    return await reply.end()


def status(code: int, error: dict[str, Any] | None = None) -> Script:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        return web.json_response({"error": error or {}}, status=code)

    return answer


@dataclass(slots=True)
class Stub:
    """`script` answers generations; `gone` is set when a client leaves one."""

    url: str = ""
    script: Script = three_words
    health: int = 200
    models: Any = field(default_factory=lambda: {"data": [{"id": "m", "max_model_len": 777}]})
    models_status: int = 200
    metrics: str | None = None
    seen: list[Seen] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    site: web.TCPSite | None = None
    runner: web.AppRunner | None = None
    port: int = 0
    health_gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.health_gate.set()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        self.seen.append(Seen(request.path, dict(request.headers), await request.json(), peer))
        try:
            return await self.script(request, Reply(request))
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise

    async def _health(self, request: web.Request) -> web.Response:
        await self.health_gate.wait()
        return web.Response(status=self.health)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response(self.models, status=self.models_status)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(status=404 if self.metrics is None else 200, text=self.metrics or "")

    async def up(self, tls: ssl.SSLContext | None = None) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._generate)
        app.router.add_post("/v1/completions", self._generate)
        app.router.add_post("/v1/embeddings", self._generate)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self.runner.setup()
        self.site = web.TCPSite(self.runner, "127.0.0.1", self.port, ssl_context=tls)
        await self.site.start()
        self.port = self.runner.addresses[0][1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"

    async def down(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None


@asynccontextmanager
async def running_stub() -> AsyncIterator[Stub]:
    stub = Stub()
    await stub.up()
    try:
        yield stub
    finally:
        stub.release.set()
        await stub.down()
