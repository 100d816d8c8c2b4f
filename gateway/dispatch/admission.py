"""How many requests a replica works on at once; beyond that it refuses at once instead of queueing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tidegate.routing.domain import Code, ServeError

RETRY_AFTER_MS = 500.0
# How many times as much as is still free one of several tenants may hold.
TIMES_FREE = 8.0


@dataclass(slots=True)
class _Held:
    """What one tenant has in flight."""

    requests: int = 0
    bytes: int = 0


class Admission:
    """Bounds requests in flight, by number and by the bytes of their prompts.

    Where it is `shared` by several tenants none of them fills it: each may hold at most TIMES_FREE times what
    is still free, eight ninths alone and less beside others, so that room is left for who comes next (dynamic
    thresholds, Choudhury and Hahne 1998). Also refuses a request_id that its tenant is being served already.
    """

    def __init__(self, limit: int, limit_bytes: int = 256_000_000, *, shared: bool = False) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._shared = shared
        self._bytes = 0
        self._held: dict[str, _Held] = {}
        self._ids: set[tuple[str, str]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    @property
    def in_flight(self) -> int:
        return len(self._ids)

    @contextmanager
    def admit(self, tenant: str, request_id: str, prompt_bytes: int = 0) -> Iterator[None]:
        """Raises ServeError: UNAVAILABLE when draining, RESOURCE_EXHAUSTED, ALREADY_EXISTS."""
        key, held = (tenant, request_id), self._held.get(tenant) or _Held()
        self._check(key, held, prompt_bytes)
        self._held[tenant] = held
        self._ids.add(key)
        self._bytes += prompt_bytes
        held.requests += 1
        held.bytes += prompt_bytes
        self._idle.clear()
        try:
            yield
        finally:
            self._ids.discard(key)
            self._bytes -= prompt_bytes
            held.requests -= 1
            held.bytes -= prompt_bytes
            if not held.requests:
                del self._held[tenant]
            if not self._ids:
                self._idle.set()

    def _check(self, key: tuple[str, str], held: _Held, prompt_bytes: int) -> None:
        if self.draining:
            raise ServeError(
                Code.UNAVAILABLE,
                "this gateway is shutting down",
                reason="DRAINING",
                retry_after_ms=RETRY_AFTER_MS,
            )
        if key in self._ids:
            raise ServeError(
                Code.ALREADY_EXISTS,
                "a request with this request_id is being served",
                reason="DUPLICATE_REQUEST_ID",
                param="request_id",
            )
        if len(self._ids) >= self._limit:
            raise _overloaded(f"this gateway serves {self._limit} requests at once and is full")
        if self._bytes + prompt_bytes > self._limit_bytes:
            raise _overloaded(
                f"the prompts being served reach this gateway's limit of {self._limit_bytes} bytes"
            )
        if self._shared and self._is_beyond_its_share(held, prompt_bytes):
            raise _overloaded("what this gateway serves at once is shared, and this tenant has its share")

    def _is_beyond_its_share(self, held: _Held, prompt_bytes: int) -> bool:
        free, free_bytes = self._limit - len(self._ids), self._limit_bytes - self._bytes
        return held.requests >= TIMES_FREE * free or (
            held.bytes > 0 and held.bytes + prompt_bytes > TIMES_FREE * (free_bytes - prompt_bytes)
        )

    async def drain(self, limit_s: float) -> None:
        """Refuses new requests from now on and waits until none is in flight, at most limit_s."""
        self.draining = True
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            pass


def _overloaded(message: str) -> ServeError:
    return ServeError(Code.RESOURCE_EXHAUSTED, message, reason="OVERLOADED", retry_after_ms=RETRY_AFTER_MS)
