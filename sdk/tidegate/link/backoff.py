"""Jittered exponential backoff ("full jitter": uniform in [0, min(cap, base * 2^n)])."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays between reconnects, so that a fleet does not come back in one instant."""

    def __init__(self, rng: Callable[[], float], *, base_s: float = 0.2, cap_s: float = 3.0) -> None:
        self._rng = rng
        self._base_s = base_s
        self._cap_s = cap_s
        self._tries = 0

    def reset(self) -> None:
        self._tries = 0

    def next_delay_s(self) -> float:
        """At least a quarter of the step, so that a dead address is not hammered."""
        step = min(self._cap_s, self._base_s * float(1 << min(self._tries, 16)))
        self._tries += 1
        return step * (0.25 + 0.75 * self._rng())
