"""How often each key may do something: a bucket of tokens per key that fills with time."""

from __future__ import annotations

from collections.abc import Callable

from tidegate.routing.domain import Code, ServeError


class Rates:
    """`per_minute` of them per key, as many at once. `clock` gives seconds. Keys are the configured ones."""

    def __init__(self, what: str, per_minute: float, clock: Callable[[], float]) -> None:
        self._what = what
        self._most = max(per_minute, 1.0)
        self._per_s = per_minute / 60.0
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str) -> None:
        """Raises ServeError(RESOURCE_EXHAUSTED) with the time until the next one."""
        now_s = self._clock()
        left, seen_s = self._buckets.get(key, (self._most, now_s))
        left = min(self._most, left + (now_s - seen_s) * self._per_s)
        if left < 1.0:
            self._buckets[key] = (left, now_s)
            raise ServeError(
                Code.RESOURCE_EXHAUSTED,
                f"this key gave {self._what} faster than it may",
                reason="RATE_LIMITED",
                retry_after_ms=(1.0 - left) / self._per_s * 1000.0,
            )
        self._buckets[key] = (left - 1.0, now_s)
