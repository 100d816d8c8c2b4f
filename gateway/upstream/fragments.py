"""The order in which work goes down a link.

Credits first, then heads of work (each with at most one fragment of input), then the rest of large inputs,
turn by turn. Only those rests are windowed: at most WINDOW_BYTES of them are unacknowledged, because gRPC and
the kernel swallow the rest beyond the reach of any priority, and a head would wait behind it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from gateway.upstream.commands import CreditCommand, DataCommand, FragmentCommand, WorkCommand
from tidegate.routing.domain import AttemptKey, Work

FRAGMENT_BYTES = 16 * 1024
WINDOW_BYTES = 32 * 1024


@dataclass(slots=True)
class _Rest:
    key: AttemptKey
    data: bytes
    offset: int


class WorkQueue:
    """Work and credits waiting to go down one link."""

    def __init__(self) -> None:
        self._credits: dict[AttemptKey, int] = {}
        self._heads: deque[Work] = deque()
        self._rests: deque[_Rest] = deque()
        self._unacked_bytes = 0
        self._wake = asyncio.Event()

    def put(self, work: Work) -> None:
        self._heads.append(work)
        self._wake.set()

    def grant(self, key: AttemptKey, chunks: int) -> None:
        self._credits[key] = self._credits.get(key, 0) + chunks
        self._wake.set()

    def drop(self, key: AttemptKey) -> bool:
        """Forgets what was not sent; True when the node has seen nothing of it."""
        self._credits.pop(key, None)
        before = len(self._heads)
        self._heads = deque(w for w in self._heads if w.key != key)
        self._rests = deque(r for r in self._rests if r.key != key)
        return len(self._heads) != before

    def acked(self, nbytes: int) -> None:
        self._unacked_bytes = max(0, self._unacked_bytes - nbytes)
        self._wake.set()

    async def next(self) -> DataCommand:
        while True:
            command = self._pop()
            if command is not None:
                return command
            self._wake.clear()
            await self._wake.wait()

    def _pop(self) -> DataCommand | None:
        if self._credits:
            key = next(iter(self._credits))
            return CreditCommand(key, self._credits.pop(key))
        if self._heads:
            work = self._heads.popleft()
            if len(work.input) > FRAGMENT_BYTES:
                self._rests.append(_Rest(work.key, work.input, FRAGMENT_BYTES))
            return WorkCommand(work, work.input[:FRAGMENT_BYTES])
        if self._rests and self._unacked_bytes < WINDOW_BYTES:
            rest = self._rests.popleft()
            data = rest.data[rest.offset : rest.offset + FRAGMENT_BYTES]
            rest.offset += len(data)
            self._unacked_bytes += len(data)
            if rest.offset < len(rest.data):
                self._rests.append(rest)
            return FragmentCommand(rest.key, data)
        return None
