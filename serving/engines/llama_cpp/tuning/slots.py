"""How many sequences run at once, so that a token of each takes no longer than a bound. Pure.

What counts is what was measured: the median of the steps of answers over the last seconds. From that, other
numbers of answers are estimated by what each further answer adds to a step, as a share of a single one's.
That stays when others take the processor or heat slows it, as all steps then take longer alike; it is learned
from the steps just before and after a change of the number. Fewer are taken when the bound is missed, so
running answers go on and new ones wait; more when they are expected to fit with room to spare, and now and
then to see whether they do. Where a single answer would miss the bound as well, no slot is given up for a
little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import log
from statistics import median, median_low
from typing import NamedTuple

# Long enough for threads to be adapted first, which costs nobody a slot.
_WINDOW_S = 2.0
_LEAST_STEPS, _KEPT_STEPS = 5, 12
_LOOK_EVERY_S = 0.25
# What is to be taken back must fit so well: measured and expected times do not alternate around the bound.
_SPARE = 0.8
# Answers may always take so much longer than a single one: most of it is read once for all of them.
_WORTH = 1.5
# After a change, until more are taken. Doubled where the last time was soon regretted.
_PAUSE_MIN_S, _PAUSE_MAX_S = 5.0, 300.0
_REGRET_S = 60.0
# Until one more is taken although it is not expected to fit, in pauses.
_DOUBT_PAUSES, _DOUBT_MAX_S = 12.0, 600.0
# After so long without an answer, what was measured says nothing.
_FORGET_S = 60.0
# Learned from so many steps before and after a change, where anything else may have changed by chance.
_BESIDE_STEPS = 4
_LEARN, _DAMPING, _MOST_MISSED, _MOST_MORE = 0.1, 0.05, 0.7, 3.0


class _Step(NamedTuple):
    answers: int
    ms: float
    at_s: float


class StepShape:
    """Time of a step by its answers, one answer's being 1: each further one adds a share, `more`."""

    def __init__(self, more: float) -> None:
        self.more = min(max(more, 0.0), _MOST_MORE)
        self._answers = 0
        self._times: deque[float] = deque(maxlen=_BESIDE_STEPS)
        self._before: tuple[int, float, float] | None = None

    @classmethod
    def of_curve(cls, step_ms: Callable[[int], float], most: int) -> StepShape:
        """By a curve that holds for the device, whatever its speed was then."""
        return cls((step_ms(most) / step_ms(1) - 1.0) / (most - 1))

    def __call__(self, answers: int) -> float:
        return 1.0 + self.more * (answers - 1)

    def step(self, answers: int, ms: float, now_s: float) -> None:
        """Learns where the number of answers changes: whatever slows a few steps slows those just after."""
        if answers != self._answers:
            is_known = len(self._times) == _BESIDE_STEPS
            self._before = (self._answers, median(self._times), now_s) if is_known else None
            self._answers = answers
            self._times.clear()
        self._times.append(ms)
        if self._before is not None and len(self._times) == _BESIDE_STEPS:
            before, before_ms, until_s = self._before
            self._before = None
            if now_s - until_s < _WINDOW_S + sum(self._times) / 1000.0:
                self._learn(answers, log(median(self._times) / before_ms), before)

    def _learn(self, answers: int, grew: float, before: int) -> None:
        """A descent on the logarithm: numbers that tell little about the share move it little."""
        expected = log(self(answers) / self(before))
        missed = min(max(grew - expected, -_MOST_MISSED), _MOST_MISSED)
        slope = (answers - 1) / self(answers) - (before - 1) / self(before)
        more = self.more + _LEARN * missed * slope / (slope * slope + _DAMPING)
        self.more = min(max(more, 0.0), _MOST_MORE)


class SlotPolicy:
    """Lets `most` sequences run at once, or fewer. `shape` is what is known before anything was learned."""

    def __init__(self, most: int, bound_ms: float, shape: StepShape) -> None:
        self.shape = shape
        self.slots = most
        self.reason = ""
        self._most, self._bound_ms = most, bound_ms
        self._steps: deque[_Step] = deque()
        self._look_s = self._last_s = self._since_s = float("-inf")
        self._grew_s: float | None = None
        self._pause_s = _PAUSE_MIN_S

    def step(self, answers: int, ms: float, now_s: float) -> int:
        """A step that gave each of `answers` a token took `ms`; how many sequences may run from now on."""
        pause_s, self._last_s = now_s - ms / 1000.0 - self._last_s, now_s
        if pause_s > _WINDOW_S:
            self._resume(pause_s, now_s)
        self._steps.append(_Step(answers, ms, now_s))
        self.shape.step(answers, ms, now_s)
        if now_s >= self._look_s:
            self._look_s = now_s + _LOOK_EVERY_S
            while len(self._steps) > _KEPT_STEPS and self._steps[0].at_s < now_s - _WINDOW_S:
                self._steps.popleft()
            self._consider(now_s)
        return self.slots

    def _resume(self, pause_s: float, now_s: float) -> None:
        self._steps.clear()
        if pause_s > _FORGET_S and self.slots < self._most:
            self._pause_s = _PAUSE_MIN_S
            self._change(self._most, f"there was nothing to do for {pause_s:.0f} s", now_s)

    def _consider(self, now_s: float) -> None:
        # Those that began before there were fewer slots run on, and are no reason for still fewer.
        judged = [step for step in self._steps if step.answers <= self.slots]
        if self.slots > 1 and _is_enough(judged, now_s):
            taken_ms = median_low(step.ms for step in judged)
            answers = round(median(step.answers for step in judged))
            if answers > 1 and taken_ms > self._limit_ms():
                self._shrink(answers, taken_ms, now_s)
                return
        if self.slots < self._most and _is_enough(self._steps, now_s):
            self._grow(now_s)

    def _shrink(self, answers: int, taken_ms: float, now_s: float) -> None:
        fitting = min(answers - 1, self._fitting(self._limit_ms()))
        regretted = self._grew_s is not None and now_s - self._grew_s < _REGRET_S
        self._pause_s = min(2.0 * self._pause_s, _PAUSE_MAX_S) if regretted else _PAUSE_MIN_S
        self._grew_s = None
        # What is far from what was measured is not known well, in either direction.
        reason = f"a token of each of {answers} answers took {taken_ms:.0f} ms"
        self._change(max(fitting, answers // 2), reason, now_s)

    def _grow(self, now_s: float) -> None:
        waited_s = now_s - self._since_s
        if waited_s < self._pause_s:
            return
        more = min(2 * self.slots, self._fitting(_SPARE * self._limit_ms()))
        if more > self.slots:
            reason = f"{more} answers are expected to keep their pace"
        elif waited_s >= min(_DOUBT_PAUSES * self._pause_s, _DOUBT_MAX_S) and self._keeps_pace():
            more, reason = self.slots + 1, "one more answer is tried"
        else:
            return
        self._grew_s = now_s
        self._change(more, reason, now_s)

    def _keeps_pace(self) -> bool:
        """With no more answers than there are slots: more that began earlier show nothing."""
        if all(step.answers > self.slots for step in self._steps):
            return False
        return self._expected_ms(self.slots) <= self._limit_ms()

    def _limit_ms(self) -> float:
        return max(self._bound_ms, _WORTH * self._expected_ms(1))

    def _fitting(self, limit_ms: float) -> int:
        """The most answers whose step is expected to take so long; 0 where none does."""
        slowness = self._slowness()
        return next((n for n in range(self._most, 0, -1) if slowness * self.shape(n) <= limit_ms), 0)

    def _expected_ms(self, answers: int) -> float:
        return self._slowness() * self.shape(answers)

    def _slowness(self) -> float:
        """Time by what such steps take when nobody disturbs."""
        return median_low(step.ms / self.shape(step.answers) for step in self._steps)

    def _change(self, slots: int, reason: str, now_s: float) -> None:
        self.slots, self.reason, self._since_s = slots, reason, now_s
        self._steps.clear()


def _is_enough(steps: Sequence[_Step], now_s: float) -> bool:
    if len(steps) < _LEAST_STEPS:
        return False
    first = steps[0]
    return now_s - first.at_s + first.ms / 1000.0 >= _WINDOW_S - _LOOK_EVERY_S
