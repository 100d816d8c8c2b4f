"""Which prefix blocks one node holds, as its reports say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tidegate.routing.domain import CacheDelta
from tidegate.routing.prefix import matched_blocks, names_digest

MAX_NAMES = 65_536


class PrefixIndex:
    """At most `limit` names; a report costs what it changes, not what is held.

    `on_held` and `on_evicted` hear of each name that comes and goes. `reported` says whether a report came.
    """

    def __init__(
        self,
        limit: int = MAX_NAMES,
        *,
        on_held: Callable[[bytes], None] = lambda name: None,
        on_evicted: Callable[[bytes], None] = lambda name: None,
    ) -> None:
        self.reported = False
        self._limit = limit
        self._on_held = on_held
        self._on_evicted = on_evicted
        self._names: set[bytes] = set()
        self._digest = 0
        self._is_partial = False
        self._view: frozenset[bytes] | None = frozenset()

    def apply(self, delta: CacheDelta) -> bool:
        """Takes a report in; False when its digest says that the index went wrong.

        Of a node that holds more than `limit` a part is known, and its digests say nothing any more: asking
        such a node for the whole set again and again would not help.
        """
        self.reported = True
        if delta.full:
            for name in self._names:
                self._on_evicted(name)
            self._names, self._digest, self._is_partial = set(), 0, False
        names = self._names
        for name in delta.evicted:
            if name in names:
                names.discard(name)
                self._on_evicted(name)
                self._digest ^= names_digest((name,))
        for name in delta.held:
            if name in names:
                continue
            if len(names) >= self._limit:
                self._is_partial = True
                break
            names.add(name)
            self._on_held(name)
            self._digest ^= names_digest((name,))
        self._view = None
        return self._is_partial or self._digest == delta.digest

    def matched(self, names: Sequence[bytes]) -> int:
        """How many leading names are held."""
        return matched_blocks(names, self._names)

    def view(self) -> frozenset[bytes]:
        """The names, immutable. Made when a snapshot needs it, not with every report."""
        if self._view is None:
            self._view = frozenset(self._names)
        return self._view
