"""When an idle model is unloaded, and how long whoever wakes it must wait. Pure but for the event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tidegate.routing.domain import PROBE_PRIORITY, Work

# A load that takes longer than the last one did is still not over.
_LEFT_SHARE = 0.1


class Slumber:
    """`after_s` without work, 0 never sleeps. `clock` gives seconds."""

    def __init__(self, after_s: float, clock: Callable[[], float]) -> None:
        self._after_s = after_s
        self._clock = clock
        self._used_s = clock()
        self._waking_s: float | None = None
        self._wanted = asyncio.Event()
        self.asleep = False
        self.load_ms = 0.0

    @property
    def enabled(self) -> bool:
        return self._after_s > 0.0

    @property
    def look_every_s(self) -> float:
        return min(1.0, self._after_s / 4.0)

    def wanted(self, work: Work) -> None:
        """Work has come. It may be over before anybody looks, and is use all the same."""
        self._note_use((work,))
        if self.asleep and self._waking_s is None:
            self._waking_s = self._clock()
            self._wanted.set()

    def is_due(self, works: Sequence[Work]) -> bool:
        """Whether the model should be unloaded now, where `works` are there."""
        self._note_use(works)
        idle_s = self._clock() - self._used_s
        return self.enabled and not works and not self.asleep and idle_s >= self._after_s

    def _note_use(self, works: Sequence[Work]) -> None:
        """Gateways' probes are none: they would keep every model loaded for nobody."""
        if any(work.priority > PROBE_PRIORITY for work in works):
            self._used_s = self._clock()

    def fall_asleep(self) -> None:
        self.asleep, self._waking_s = True, None
        self._wanted.clear()

    async def until_wanted(self) -> None:
        await self._wanted.wait()

    def loaded(self, load_ms: float) -> None:
        """The model is there, after so long."""
        self.load_ms = load_ms
        self.over()
        self._used_s = self._clock()

    def over(self) -> None:
        """Awake, or given up: nothing is waited for any more."""
        self.asleep, self._waking_s = False, None

    @property
    def wake_ms(self) -> float:
        """Until the model is loaded, for work that comes now; 0 where it is."""
        if not self.asleep:
            return 0.0
        if self._waking_s is None:
            return self.load_ms
        return max(self.load_ms - (self._clock() - self._waking_s) * 1000.0, _LEFT_SHARE * self.load_ms)
