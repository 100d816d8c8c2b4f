"""Which attempts of which requests a node has seen."""

from __future__ import annotations

from collections import OrderedDict

from tidegate.routing.domain import AttemptKey


class FenceTable:
    """The highest refused attempt number per request id, least recently touched ids forgotten first.

    A forgotten id could be taken again, so `limit` must exceed the requests a node sees within the time in
    which a late duplicate can still arrive.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._refused: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._refused)

    def refuses(self, key: AttemptKey) -> bool:
        """True for an attempt that was seen already or stands below a fence."""
        return key.attempt_no <= self._refused.get(key.request_id, -1)

    def seen(self, key: AttemptKey) -> None:
        """From now on this attempt and lower ones are refused."""
        self._raise(key.request_id, key.attempt_no)

    def raise_to(self, key: AttemptKey) -> None:
        """From now on attempts below this one are refused."""
        self._raise(key.request_id, key.attempt_no - 1)

    def _raise(self, request_id: str, attempt_no: int) -> None:
        self._refused[request_id] = max(attempt_no, self._refused.get(request_id, -1))
        self._refused.move_to_end(request_id)
        if len(self._refused) > self._limit:
            self._refused.popitem(last=False)
