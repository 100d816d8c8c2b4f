"""Where the last turn of each session ran and its data class; bounded, shared between replicas by hint."""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from gateway.state.records import SessionRecord
from tidegate.routing.domain import SessionHint


class Sessions:
    """Least recently used sessions fall out at `limit`. One writer: this replica's event loop.

    `stricter` gives the stricter of two data classes: a session's class only ever rises, in whatever order
    its requests end and the records of other replicas come.
    """

    def __init__(self, key: bytes, *, stricter: Callable[[str, str], str], limit: int = 100_000) -> None:
        self._key = key
        self._stricter = stricter
        self._limit = limit
        self._known: OrderedDict[str, SessionRecord] = OrderedDict()
        self._unsent: dict[str, SessionRecord] = {}

    def name(self, tenant: str, session_id: str) -> str:
        """The session's name in shared places: keyed, so that it tells nothing and tenants never meet."""
        return hmac.new(self._key, f"{tenant}\0{session_id}".encode(), hashlib.sha256).hexdigest()[:32]

    def hint(self, name: str) -> SessionHint | None:
        """Where its warm prefix is, once a turn has finished."""
        record = self._touch(name)
        if record is None or not record.node_id:
            return None
        return SessionHint(record.node_id, record.variant_digest, record.tokens)

    def data_class(self, name: str) -> str:
        record = self._touch(name)
        return "" if record is None else record.data_class

    def put(self, name: str, hint: SessionHint | None, data_class: str) -> None:
        """What this replica saw itself; goes to the others with the next sync.

        Without a hint only the data class is noted, as at the start of a turn.
        """
        if hint is None:
            hint = self.hint(name) or SessionHint("", "", 0)
        record = SessionRecord(name, hint.node_id, hint.variant_digest, hint.tokens, data_class)
        self._unsent[name] = self._store(record)
        while len(self._unsent) > self._limit:
            del self._unsent[next(iter(self._unsent))]

    def learn(self, record: SessionRecord) -> None:
        """What another replica saw; where the session ran is newer here while it was not sent yet."""
        unsent = self._unsent.get(record.session)
        if unsent is None:
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
