"""The prefix blocks that the child holds, as its parent reports them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from tidegate.routing.domain import CacheDelta
from tidegate.routing.prefix import names_digest


class CacheView:
    """Block names held now, and the net change since it was last asked for."""

    def __init__(self) -> None:
        self._held: set[bytes] = set()
        self._reported: set[bytes] = set()

    def change(self, held: Iterable[bytes], evicted: Iterable[bytes]) -> None:
        self._held.update(held)
        self._held.difference_update(evicted)

    def clear(self) -> None:
        """The child is gone, and its cache with it."""
        self._held.clear()

    def take_changes(self) -> CacheDelta | None:
        """Held and evicted since the last call; None when nothing changed."""
        if self._held == self._reported:
            return None
        held, evicted = self._held - self._reported, self._reported - self._held
        self._reported = set(self._held)
        return CacheDelta(tuple(sorted(held)), tuple(sorted(evicted)), names_digest(self._held))

    def full(self) -> CacheDelta:
        return CacheDelta(held=tuple(sorted(self._held)), digest=names_digest(self._held), full=True)
