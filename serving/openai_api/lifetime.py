"""Answers under way, so that a stop ends them with a word instead of a cut connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidegate.routing.domain import Code, ServeError


class Answers:
    """All answers one application is giving. One event loop."""

    def __init__(self) -> None:
        self._limits: set[asyncio.Timeout] = set()
        self._none = asyncio.Event()
        self._none.set()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Runs its block until the end or the stop. Raises ServeError(UNAVAILABLE) at the stop."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._limits.add(limit)
                self._none.clear()
                try:
                    yield
                finally:
                    self._limits.discard(limit)
                    if not self._limits:
                        self._none.set()
        except TimeoutError:
            if not limit.expired():
                raise
            raise ServeError(Code.UNAVAILABLE, "The server is stopping", reason="SHUTTING_DOWN") from None

    async def stop(self, grace_s: float) -> None:
        """Lets answers end by themselves for `grace_s`, then ends them."""
        try:
            async with asyncio.timeout(grace_s):
                await self._none.wait()
        except TimeoutError:
            now_s = asyncio.get_running_loop().time()
            for limit in tuple(self._limits):
                limit.reschedule(now_s)
