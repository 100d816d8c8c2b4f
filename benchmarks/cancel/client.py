"""A client process that starts a stream and drops it when told to, or is killed.

    python -m benchmarks.cancel.client grpc|http ADDRESS

Commands come as JSON lines on stdin: {"go": {"prompt": ..., "max_tokens": ...}} and {"cancel": true}. Events
go out as JSON lines; `at` is time.monotonic(), which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Protocol

import aiohttp

import tidegate
from benchmarks.talker import commands, say


class Door(Protocol):
    """One way into the gateway; leaving the iterator early drops the request."""

    def stream(self, prompt: str, max_tokens: int) -> AsyncIterator[None]:
        """Yields per piece of the answer."""
        ...


class GrpcDoor:
    def __init__(self, address: str) -> None:
        self._client = tidegate.Client(address)

    async def stream(self, prompt: str, max_tokens: int) -> AsyncIterator[None]:
        async with self._client.generate(prompt, max_tokens=max_tokens) as stream:
            async for _ in stream:
                yield


class HttpDoor:
    def __init__(self, address: str) -> None:
        self._url = f"{address}/v1/chat/completions"
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))

    async def stream(self, prompt: str, max_tokens: int) -> AsyncIterator[None]:
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "stream": True,
        }
        async with self._session.post(self._url, json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    yield


async def serve(door: Door, orders: asyncio.StreamReader) -> None:
    running: asyncio.Task[None] | None = None
    tell("ready")
    while line := await orders.readline():
        command: dict[str, Any] = json.loads(line)
        if "go" in command:
            running = asyncio.create_task(answer(door, **command["go"]))
        elif running is not None:
            tell("cancelled")
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def answer(door: Door, prompt: str, max_tokens: int) -> None:
    seen = False
    try:
        async for _ in door.stream(prompt, max_tokens):
            if not seen:
                seen = True
                tell("first")
        tell("ended", why="finished")
    except (tidegate.TidegateError, aiohttp.ClientError) as error:
        tell("ended", why=f"{type(error).__name__}: {error}")


def tell(event: str, **more: str) -> None:
    say({"event": event, "at": time.monotonic(), **more})


async def main(kind: str, address: str) -> None:
    await serve(GrpcDoor(address) if kind == "grpc" else HttpDoor(address), await commands())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
