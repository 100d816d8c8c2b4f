"""When a child that ended is started again: at once, after a pause, or not for a long time."""

from __future__ import annotations

_FIRST_PAUSE_S = 0.5


class Crashes:
    """Counts ends in a row: without a step since for the pauses, without an answer for quarantine.

    A child that comes back, starts on the first request and dies again makes steps, but never an answer.
    """

    def __init__(self, *, longest_pause_s: float, quarantine_after: int, quarantine_s: float) -> None:
        self._longest_pause_s = longest_pause_s
        self._quarantine_after = quarantine_after
        self._quarantine_s = quarantine_s
        self._without_step = 0
        self._without_answer = 0

    @property
    def without_answer(self) -> int:
        return self._without_answer

    def step(self) -> None:
        self._without_step = 0

    def answer(self) -> None:
        """A sequence has ended well."""
        self._without_answer = 0

    def ended(self) -> tuple[float, bool]:
        """A child ended, or could not be started: seconds until the next try, and whether in quarantine.

        After a quarantine one more such end is enough for the next.
        """
        self._without_step += 1
        self._without_answer += 1
        if self._quarantine_after and self._without_answer >= self._quarantine_after:
            return self._quarantine_s, True
        if self._without_step == 1:
            return 0.0, False
        return min(_FIRST_PAUSE_S * 2.0 ** min(self._without_step - 2, 10), self._longest_pause_s), False
