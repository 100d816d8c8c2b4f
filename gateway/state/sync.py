"""Keeps this replica and the shared store in step, once a second, off every request's path."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from gateway.state.records import NodeRecord
from gateway.state.sessions import Sessions
from gateway.state.store import Store, StoreError
from tidegate.routing.fleet import Fleet

log = logging.getLogger(__name__)

# Sessions come in pages; a replica that has just started must not take seconds to know them all.
MAX_PAGES = 20
# What was learned is published every so many rounds, a page at a time: making a record takes about 0.1 ms.
LEARNED_EACH = 10
LEARNED_AT_ONCE = 25
MAX_LEARNED_PAGES = 200


class Learning(Protocol):
    """What is handed over between replicas: implemented by tidegate.routing.latency.LearnedLatency."""

    def take_changed(self, limit: int) -> dict[str, str]:
        """Records of what changed since they were last taken, by name, at most `limit` and a few."""
        ...

    def adopt(self, name: str, record: str) -> bool:
        """Takes a peer's record over where less is known; False for one that is not sound."""
        ...


class StoreSync:
    """Publishes linked nodes and new sessions, and learns what other replicas published.

    `alone` says that no other replica can see the store: nodes told to it would come back to nobody, and a
    thousand of them cost a tenth of a core.

    A store that is gone costs nothing but freshness: what is known is kept, what was not sent is kept for
    later, and the node table is rebuilt from the nodes' own links.
    """

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        sessions: Sessions,
        replica_id: str,
        *,
        interval_s: float = 1.0,
        ttl_s: float = 6.0,
        alone: bool = False,
        learning: Learning | None = None,
        on_health: Callable[[bool], None] = lambda up: None,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._sessions = sessions
        self._replica_id = replica_id
        self._interval_s = interval_s
        self._ttl_s = ttl_s
        self._alone = alone
        self._learning = None if alone else learning
        self._rounds = 0
        self._has_adopted = False
        self._on_health = on_health
        self._cursor = ""
        self.up: bool | None = None

    async def run(self) -> None:
        """Runs until cancelled.

        The store's driver uses asyncio.wait_for, which until Python 3.12 swallows a cancellation that comes
        just as its future ends. The task knows of it all the same.
        """
        task = asyncio.current_task()
        assert task is not None
        while True:
            await self.once()
            if task.cancelling():
                return
            await asyncio.sleep(self._interval_s)

    async def once(self, *, last: bool = False) -> None:
        """One round; an error is reported, not raised: the replica serves on without its store.

        With the `last` one all that was learned is left to whoever comes next.
        """
        try:
            if not self._alone:
                await self._share_nodes()
            await self._share_sessions()
            await self._learn_sessions()
            if self._learning is not None:
                await self._hand_over(self._learning, last=last)
        except StoreError as error:
            self._report(False, str(error))
        except Exception as error:
            log.exception("store sync failed")
            self._report(False, type(error).__name__)
        else:
            self._report(True, "")

    async def _share_nodes(self) -> None:
        records = [NodeRecord(self._replica_id, state) for state in self._fleet.linked()]
        await self._store.publish_nodes(self._replica_id, records, self._ttl_s)
        self._fleet.learn_remote(await self._store.read_nodes(), self._replica_id)

    async def _share_sessions(self) -> None:
        unsent = self._sessions.take_unsent()
        try:
            await self._store.append_sessions(unsent)
        except BaseException:
            self._sessions.put_back(unsent)
            raise

    async def _learn_sessions(self) -> None:
        for _ in range(MAX_PAGES):
            self._cursor, learned = await self._store.read_sessions(self._cursor)
            for record in learned:
                self._sessions.learn(record)
            if not learned:
                return

    async def _hand_over(self, learning: Learning, *, last: bool) -> None:
        if not self._has_adopted:
            unsound = await self._adopt(learning)
            self._has_adopted = True
            if unsound:
                log.warning("records of what was learned are not sound", extra={"records": unsound})
        self._rounds += 1
        if not last and self._rounds % LEARNED_EACH:
            return
        for _ in range(MAX_LEARNED_PAGES):
            records = learning.take_changed(LEARNED_AT_ONCE)
            if not records:
                return
            await self._store.publish_learned(records)

    async def _adopt(self, learning: Learning) -> int:
        """How many records were of no use."""
        unsound = 0
        for done, (name, record) in enumerate((await self._store.read_learned()).items(), 1):
            unsound += not learning.adopt(name, record)
            if done % LEARNED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return unsound

    def _report(self, up: bool, reason: str) -> None:
        if up is not self.up:
            if up and not self._alone:
                log.info("shared store reached")
            if not up:
                log.warning("shared store lost, going on without it", extra={"reason": reason})
            self.up = up
        self._on_health(up)
