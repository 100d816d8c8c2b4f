"""The names of prompt blocks that the engine holds, counted over all places that hold them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class HeldNames:
    """The names held anywhere, and what changed since it was last asked."""

    def __init__(self) -> None:
        self._holders: Counter[bytes] = Counter()
        self._reported: set[bytes] = set()
        self._touched: set[bytes] = set()

    def replace(self, old: Iterable[bytes], new: Iterable[bytes]) -> None:
        """One place now holds `new` instead of `old`."""
        for name in new:
            self._holders[name] += 1
            self._touched.add(name)
        for name in old:
            self._holders[name] -= 1
            self._touched.add(name)

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        """(newly held, evicted) since the last call."""
        held, evicted = [], []
        for name in self._touched:
            holds = self._holders[name] > 0
            if holds and name not in self._reported:
                held.append(name)
            elif not holds and name in self._reported:
                evicted.append(name)
            if not holds:
                del self._holders[name]
        self._touched.clear()
        self._reported.update(held)
        self._reported.difference_update(evicted)
        return held, evicted
