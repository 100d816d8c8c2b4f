"""Which attempts of which requests a node has seen."""

from __future__ import annotations

from collections import Counter, OrderedDict

from tidegate.routing.domain import AttemptKey


class FenceTable:
    """The highest refused attempt number per request id, least recently touched ids forgotten first.

    A forgotten id could be taken again, so `limit` must exceed the requests a node sees within the time in
    which a late duplicate can still arrive. Ids with running attempts are never forgotten, beyond the limit
    if need be.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._refused: OrderedDict[str, int] = OrderedDict()
        self._running: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._refused)

    def refuses(self, key: AttemptKey) -> bool:
        """True for an attempt that was seen already or stands below a fence."""
        return key.attempt_no <= self._refused.get(key.request_id, -1)

    def started(self, key: AttemptKey) -> None:
        """From now on this attempt and lower ones are refused; remembered at least until ended()."""
        self._running[key.request_id] += 1
        self._raise(key.request_id, key.attempt_no)

    def ended(self, key: AttemptKey) -> None:
        """Once for every started()."""
        self._running[key.request_id] -= 1
        if self._running[key.request_id] <= 0:
            del self._running[key.request_id]
            self._refused.move_to_end(key.request_id)
            self._shrink()

    def raise_to(self, key: AttemptKey) -> None:
        """From now on attempts below this one are refused."""
        self._raise(key.request_id, key.attempt_no - 1)

    def _raise(self, request_id: str, attempt_no: int) -> None:
        self._refused[request_id] = max(attempt_no, self._refused.get(request_id, -1))
        self._refused.move_to_end(request_id)
        self._shrink()

    def _shrink(self) -> None:
        surplus = len(self._refused) - self._limit
        if surplus <= 0:
            return
        idle = (request_id for request_id in self._refused if request_id not in self._running)
        for request_id in [found for _, found in zip(range(surplus), idle, strict=False)]:
            del self._refused[request_id]
