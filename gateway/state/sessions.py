"""Where the last turn of each session ran and its data class; bounded, shared between replicas by hint."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from gateway.state.records import SessionRecord
from tidegate.routing.domain import SessionHint

# By then the node has told what it holds of a turn that ended.
REPORTED_AFTER_S = 3.0


class Sessions:
    """Least recently used sessions fall out at `limit`. One writer: this replica's event loop. `clock`
    returns seconds.

    `stricter` gives the stricter of two data classes: a session's class only ever rises, in whatever order
    its requests end and the records of other replicas come.
    """

    def __init__(
        self,
        key: bytes,
        clock: Callable[[], float],
        *,
        stricter: Callable[[str, str], str],
        limit: int = 100_000,
    ) -> None:
        self._key = key
        self._clock = clock
        self._stricter = stricter
        self._limit = limit
        self._known: OrderedDict[str, SessionRecord] = OrderedDict()
        self._unsent: dict[str, SessionRecord] = {}
        # When turns ended here of late, the longest ago first.
        self._ended_s: dict[str, float] = {}

    def name(self, tenant: str, session_id: str) -> str:
        """The session's name in shared places: keyed, so that it tells nothing and tenants never meet."""
        return hmac.new(self._key, f"{tenant}\0{session_id}".encode(), hashlib.sha256).hexdigest()[:32]

    def hint(self, name: str) -> SessionHint | None:
        """Where its warm prefix is, once a turn has finished."""
        record = self._touch(name)
        if record is None or not record.node_id:
            return None
        fresh = self._clock() - self._ended_s.get(name, -math.inf) < REPORTED_AFTER_S
        return SessionHint(
            record.node_id, record.variant_digest, record.tokens, record.boot_id, record.blocks, fresh
        )

    def data_class(self, name: str) -> str:
        record = self._touch(name)
        return "" if record is None else record.data_class

    def put(self, name: str, hint: SessionHint | None, data_class: str) -> None:
        """What this replica saw itself; goes to the others with the next sync.

        Without a hint only the data class is noted, as at the start of a turn.
        """
        if hint is None:
            hint = self.hint(name) or SessionHint("", "", 0)
        else:
            self._note_end(name)
        record = SessionRecord(
            name, hint.node_id, hint.variant_digest, hint.tokens, data_class, hint.boot_id, hint.blocks
        )
        self._unsent[name] = self._store(record)
        while len(self._unsent) > self._limit:
            del self._unsent[next(iter(self._unsent))]

    def learn(self, record: SessionRecord) -> None:
        """What another replica saw; where the session ran is newer here while it was not sent yet."""
        unsent = self._unsent.get(record.session)
        if unsent is None:
            if record != self._known.get(record.session):  # its own records come back, too
                self._ended_s.pop(record.session, None)
            self._store(record)
        else:
            self._unsent[record.session] = self._store(replace(unsent, data_class=record.data_class))

    def take_unsent(self) -> tuple[SessionRecord, ...]:
        records = tuple(self._unsent.values())
        self._unsent.clear()
        return records

    def put_back(self, records: tuple[SessionRecord, ...]) -> None:
        """Sending failed: try again with the next sync, unless newer ones came meanwhile."""
        for record in records:
            self._unsent.setdefault(record.session, record)

    def _note_end(self, name: str) -> None:
        now_s, ended_s = self._clock(), self._ended_s
        ended_s.pop(name, None)
        ended_s[name] = now_s
        while ended_s[oldest := next(iter(ended_s))] <= now_s - REPORTED_AFTER_S:
            del ended_s[oldest]

    def _touch(self, name: str) -> SessionRecord | None:
        record = self._known.get(name)
        if record is not None:
            self._known.move_to_end(name)
        return record

    def _store(self, record: SessionRecord) -> SessionRecord:
        """Keeps the record, with the strictest class its session ever had."""
        known = self._known.get(record.session)
        if known is not None and known.data_class != record.data_class:
            record = replace(record, data_class=self._stricter(known.data_class, record.data_class))
        self._known[record.session] = record
        self._known.move_to_end(record.session)
        while len(self._known) > self._limit:
            self._known.popitem(last=False)
        return record
