"""When a child that runs work and makes no step is given up. Pure."""

from __future__ import annotations

# The second look comes this share of the limit after the first one.
_AGAIN_SHARE = 0.05
_SHORTEST_S = 0.005


class Watchdog:
    """Looks when the limit can have passed, not before: its rhythm adds nothing to the time without a step.

    It takes two looks: after a pause of this very process, frames of a healthy child may lie unread.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._suspects = False

    def look(self, quiet_s: float | None) -> tuple[bool, float]:
        """(whether to end the child, seconds until the next look).

        `quiet_s` passed since its last step; None where it has nothing to do. What is begun later has all of
        the limit before it, so that nothing is missed until the next look.
        """
        if quiet_s is None or quiet_s < self._limit_s:
            self._suspects = False
            return False, self._limit_s if quiet_s is None else max(self._limit_s - quiet_s, _SHORTEST_S)
        ends, self._suspects = self._suspects, not self._suspects
        return ends, self._limit_s * _AGAIN_SHARE
