"""Bytes in and out under deadlines: request bodies, server-sent events, whole responses."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import Awaitable

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from serving.openai_api.errors import HttpError
from serving.openai_api.options import FrontOptions

_SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Tells nginx not to collect the stream.
    "X-Accel-Buffering": "no",
}


async def read_body(request: web.Request, options: FrontOptions) -> bytes:
    """The whole body. Raises HttpError 408, 413 or 415; a body still on its way costs the connection."""
    if request.content_type != "application/json":
        raise HttpError(415, "The Content-Type must be application/json", "unsupported_media_type")
    limit = options.max_body_bytes
    too_large = HttpError(413, f"The request body is larger than {limit} bytes", "body_too_large", close=True)
    if request.content_length is not None and request.content_length > limit:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(options.body_timeout_s):
            async for piece in request.content.iter_any():
                data += piece
                if len(data) > limit:
                    raise too_large
    except TimeoutError:
        raise HttpError(408, "The request body took too long", "body_timeout", close=True) from None
    except web.RequestPayloadError:
        raise HttpError(400, "The request body could not be decoded", "bad_body", close=True) from None
    return bytes(data)


class ReaderLost(Exception):
    """The client is gone or stopped reading; nobody is left to be told."""


class SseStream:
    """A response of server-sent events whose reader must keep reading.

    Writes return at once while the transport's buffer has room; once it is full the reader has `stall_s`
    to take some, or the connection is cut. Raises ReaderLost.
    """

    def __init__(self, request: web.Request, stall_s: float) -> None:
        self._request = request
        self._stall_s = stall_s
        self._writer: AbstractStreamWriter | None = None
        self.response = web.StreamResponse(headers=_SSE_HEADERS)

    async def open(self, headers: dict[str, str], data: bytes) -> None:
        """Sends the response's head together with its first events."""
        self.response.headers.update(headers)
        if self._request.version < HttpVersion11:
            # Without chunks only the connection's end ends the answer, whatever the client asks to be kept.
            self.response.force_close()
        bound_unacknowledged(self._request, self._stall_s)
        self._writer = await self.response.prepare(self._request)
        await self.send(data)

    async def send(self, data: bytes) -> None:
        writer = self._writer
        if writer is None or not data:
            return
        try:
            # aiohttp's own drain would wait without a deadline.
            await writer.write(data, drain=False)  # type: ignore[call-arg]
        except ConnectionError as error:
            raise ReaderLost from error
        if self._request.protocol.writing_paused:
            await _within(self._request, self._stall_s, writer.drain())

    async def end(self, data: bytes) -> None:
        await self.send(data)
        await _within(self._request, self._stall_s, self.response.write_eof())


async def send_whole(request: web.Request, response: web.StreamResponse, stall_s: float) -> None:
    """Sends a response that nothing of was sent yet. Raises ReaderLost."""

    async def send() -> None:
        await response.prepare(request)
        await response.write_eof()

    await _within(request, stall_s, send())


async def _within(request: web.Request, stall_s: float, writing: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(stall_s):
            await writing
    except TimeoutError as error:
        if request.transport is not None:
            # Not close(): that would wait for the reader that does not read.
            request.transport.abort()
        raise ReaderLost from error
    except ConnectionError as error:
        raise ReaderLost from error


def bound_unacknowledged(request: web.Request, stall_s: float) -> None:
    """Lets the kernel end a connection whose bytes were not acknowledged for `stall_s`.

    Without it a client that lost power, or that reads nothing of an answer smaller than the kernel's buffers,
    keeps its engine slot until the answer's end. Best effort: only Linux has the option.
    """
    sock = request.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if sock is None or option is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        sock.setsockopt(socket.IPPROTO_TCP, option, max(1, int(stall_s * 1000)))
    except OSError:
        return


def failure_place(error: BaseException) -> str:
    """Type and place of a failure for a log line; its message is left out, it may hold a prompt."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    path = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} in {path}"
