"""The HTTP client of one OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from serving.engines.openai_http.failures import (
    UpstreamFailed,
    UpstreamGone,
    failure_of_exception,
    failure_of_status,
)
from serving.engines.openai_http.settings import OpenAiHttpSettings

_MAX_PAGE_BYTES = 8 << 20
_MAX_ERROR_BYTES = 16 << 10
_KEEPALIVE_S = 2.0  # below the 5 s after which uvicorn and llama-server close an idle connection


@dataclass(frozen=True, slots=True)
class Page:
    status: int
    body: bytes

    def json(self) -> Any:
        """None when the body is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class Upstream:
    """Redirects are never followed, because they would carry the key and the prompt elsewhere."""

    def __init__(self, settings: OpenAiHttpSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Raises OSError or ssl.SSLError when the CA file cannot be used."""
        settings = self._settings
        # A compressed stream comes in lumps.
        headers = {"Accept-Encoding": "identity", "User-Agent": "tidegate"}
        if settings.api_key:
            headers["Authorization"] = f"Bearer {settings.api_key}"
        # Never aiohttp's own context: see serving.lean_aiohttp.
        context: ssl.SSLContext | bool = True
        if settings.ca_file or settings.base_url.lower().startswith("https:"):
            context = await asyncio.to_thread(ssl.create_default_context, cafile=settings.ca_file or None)
        connector: aiohttp.BaseConnector
        if settings.socket:
            connector = aiohttp.UnixConnector(settings.socket, limit=0, keepalive_timeout=_KEEPALIVE_S)
        else:
            connector = aiohttp.TCPConnector(limit=0, ssl=context, keepalive_timeout=_KEEPALIVE_S)
        self._session = aiohttp.ClientSession(
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
            max_line_size=64 << 10,
        )

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, path: str, *, timeout_s: float, of_api: bool = False) -> Page:
        """Raises UpstreamFailed when no answer comes within `timeout_s`; any status is an answer."""
        url = (self._settings.api_url if of_api else self._settings.root_url) + path
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._opened().get(url, timeout=timeout, allow_redirects=False) as response:
                body = await _read_at_most(response, _MAX_PAGE_BYTES)
                return Page(response.status, body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamGone(failure_of_exception(error)) from error

    @asynccontextmanager
    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of a streamed answer as they come. Leaving early closes the connection.

        Raises UpstreamFailed for anything but a 200, aiohttp.ClientError when the connection breaks later.
        """
        response = await self._post(self._settings.api_url + path, body)
        try:
            if response.status != 200:
                said = await _read_at_most(response, _MAX_ERROR_BYTES)
                raise UpstreamFailed(failure_of_status(response.status, said))
            yield response.content.iter_any()
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _post(self, url: str, body: dict[str, Any]) -> aiohttp.ClientResponse:
        for last_try in (False, True):
            try:
                return await self._opened().post(url, json=body, allow_redirects=False)
            except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
                raise UpstreamGone(failure_of_exception(error)) from error
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # The server may have closed an idle connection just as it was reused: nothing came back yet.
                if last_try:
                    raise UpstreamGone(failure_of_exception(error)) from error
        raise AssertionError("unreachable")

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the upstream client is not open")
        return self._session


async def _read_at_most(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, cut at `limit` bytes."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size >= limit:
            break
    return b"".join(parts)[:limit]
