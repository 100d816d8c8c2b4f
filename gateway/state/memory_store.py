"""A store inside one process: for a single replica, and for tests with several."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from gateway.state.records import NodeRecord, SessionRecord

KEPT_SESSIONS = 10_000
KEPT_LEARNED = 20_000


class MemoryStore:
    """Implements Store. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._nodes: dict[str, tuple[float, tuple[NodeRecord, ...]]] = {}
        self._sessions: deque[tuple[int, SessionRecord]] = deque(maxlen=KEPT_SESSIONS)
        self._appended = 0
        self._learned: dict[str, str] = {}

    async def publish_nodes(self, replica_id: str, records: Sequence[NodeRecord], ttl_s: float) -> None:
        # What is read back is another replica's view, whose links are not the reader's.
        seen = tuple(replace(r, state=replace(r.state, linked_here=False)) for r in records)
        self._nodes[replica_id] = (self._clock() + ttl_s, seen)

    async def read_nodes(self) -> tuple[NodeRecord, ...]:
        now = self._clock()
        self._nodes = {k: v for k, v in self._nodes.items() if v[0] > now}
        return tuple(record for _, records in self._nodes.values() for record in records)

    async def append_sessions(self, records: Sequence[SessionRecord]) -> None:
        for record in records:
            self._appended += 1
            self._sessions.append((self._appended, record))

    async def read_sessions(self, after: str) -> tuple[str, tuple[SessionRecord, ...]]:
        start = int(after or 0)
        found = [(n, record) for n, record in self._sessions if n > start]
        cursor = str(found[-1][0]) if found else after
        return cursor, tuple(record for _, record in found)

    async def publish_learned(self, records: Mapping[str, str]) -> None:
        self._learned.update(records)
        while len(self._learned) > KEPT_LEARNED:
            del self._learned[next(iter(self._learned))]

    async def read_learned(self) -> dict[str, str]:
        return dict(self._learned)

    async def close(self) -> None:
        return None
