"""How many threads compute, decided between steps. Pure: time and what is seen of the processor come in.

Threads that compute together wait for each other hundreds of times in a step, and they wait by spinning. One
that shares its core with another process holds all up: two threads then are slower than one. What is seen of
the processor only says that something may have changed. What is kept is what makes steps faster: a trial
compares the time of a few steps with the time of those just before it. Only where there is nothing to compare
with, at the first step after a pause, what is seen decides alone, until a trial.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from serving.engines.llama_cpp.meter import MIN_PREFILL_TOKENS

# A trial must gain this much to be kept, in either direction: two settings that are as good do not alternate.
_GAIN = 0.95
_TRIAL_STEPS, _TRIAL_S = 3, 0.08
# Less heat is not felt at once.
_HEAT_TRIAL_S, _HEAT_PAUSE_S = 4.0, 30.0
# The first step after a change starts or parks threads.
_SETTLE_STEPS = 1
_BEFORE_STEPS, _BEFORE_S = 4, 0.12
# A trial that gained nothing is made again after a pause that doubles.
_PAUSE_MIN_S, _PAUSE_MAX_S = 1.0, 60.0
# So much more (or less) of the processor taken than at the last trial makes a new one worth while at once.
_NEWS_CORES = 0.4
# Spinning threads that had their cores for themselves used all of the time.
_OWN_SHARE = 0.85
_SLOW = 1.3
_FULL = 0.95
# A core that is taken for less than this part counts as free.
_TAKEN = 0.4
# Where others seem to hold all cores, more threads are tried in spite of it as rarely as this; sooner where
# no trial has shown that fewer are faster.
_DOUBT_S, _UNPROVEN_DOUBT_S = 300.0, 20.0
# With both threads on one core a single step can take seconds: one that is so slow is evidence enough.
_VERY_SLOW, _LONG_S = 3.0, 0.25
# After so long without a step, what was before says nothing.
_IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class CpuView:
    """What was last seen of the `cores` that this process may run on; None where the system does not tell.

    `quota` is how many of them it may fill. `own_share` is the part of the time of all computing threads in
    which they really ran, at most 1.
    """

    cores: int = 1
    quota: float = math.inf
    foreign_cores: float | None = None
    own_cores: float = 0.0
    own_share: float | None = None
    hot: bool = False

    def free_cores(self, threads: int) -> float | None:
        """What others leave to this process, which computes with `threads` now."""
        foreign = self.foreign_cores
        if foreign is None:
            return None
        if self.own_cores + foreign >= _FULL * self.cores and foreign < self.cores:
            # All cores are in use and shared fairly, so others want more than they get.
            foreign = max(foreign, foreign * threads / (self.cores - foreign))
        return min(self.cores - foreign, self.quota)


@dataclass(frozen=True, slots=True)
class Step:
    """One step: sequences that got a token, prompt tokens, and when it ended."""

    decoded: int
    prefilled: int
    ms: float
    at_s: float

    @property
    def kind(self) -> tuple[bool, int]:
        """Few prompt tokens cost more each than many."""
        return self.decoded > 0, (self.prefilled > 0) + (self.prefilled >= MIN_PREFILL_TOKENS)


@dataclass(slots=True)
class _Trial:
    former: int
    before: list[Step]
    foreign_cores: float
    seconds: float
    reason: str


@dataclass(slots=True)
class _Pause:
    """When one direction may be tried again, and how busy others were when it was tried last."""

    until_s: float = -math.inf
    length_s: float = 0.0
    foreign_cores: float = 0.0

    def longer(self, now_s: float, foreign_cores: float) -> None:
        self.length_s = min(max(2.0 * self.length_s, _PAUSE_MIN_S), _PAUSE_MAX_S)
        self.until_s, self.foreign_cores = now_s + self.length_s, foreign_cores

    def over(self, from_s: float) -> None:
        self.until_s, self.length_s = from_s, 0.0


class ThreadPolicy:
    """`expected_ms(decoded, prefilled)` is the device's own record of such a step; only ratios matter."""

    def __init__(self, most: int, expected_ms: Callable[[int, int], float]) -> None:
        self._most = most
        self._expected_ms = expected_ms
        self.threads = most
        self.reason = ""
        self._recent: deque[Step] = deque(maxlen=256)
        self._settling = _SETTLE_STEPS
        self._trial: _Trial | None = None
        self._down, self._up = _Pause(), _Pause()
        self._doubt_s = _DOUBT_S
        self._last_s = -math.inf

    @property
    def settled(self) -> int:
        """`threads`, but for those of a trial that is not decided."""
        return self.threads if self._trial is None else self._trial.former

    def step(self, step: Step, cpu: CpuView) -> int:
        """The threads for the next step."""
        idle, self._last_s = step.at_s - self._last_s > _IDLE_S + step.ms / 1000.0, step.at_s
        if idle:
            self.begin(step.at_s - step.ms / 1000.0, CpuView())
        is_dreadful = step.ms > _LONG_S * 1000.0 and self._cost([step]) > _VERY_SLOW
        if self._settling > 0:
            self._settling -= 1
            if not is_dreadful:
                return self.threads
        self._recent.append(step)
        if self._trial is not None:
            if is_dreadful or self._is_decided(self._trial, step.at_s):
                self._decide(self._trial, step.at_s, cpu)
        elif len(self._recent) >= _BEFORE_STEPS or is_dreadful:
            self._consider(step.at_s, cpu)
        return self.threads

    def begin(self, now_s: float, cpu: CpuView) -> int:
        """The threads for the first step after a pause."""
        if self._trial is not None:
            self._change(self._trial.former)
            self._trial = None
        self._recent.clear()
        self._last_s = now_s
        target = self._fitting(cpu)
        if target is None:
            # Whoever was busy then may be gone: looking again costs a few steps.
            self._up.over(now_s)
        elif target != self.threads and not self._is_refuted(target, now_s, cpu):
            self.reason = "cores were free" if target > self.threads else _words(cpu)
            self._change(target)
            self._up.until_s, self._doubt_s = now_s, _UNPROVEN_DOUBT_S
        return self.threads

    def _is_refuted(self, target: int, now_s: float, cpu: CpuView) -> bool:
        """A trial in that direction gained nothing, not long ago and with others as busy as now."""
        pause = self._up if target > self.threads else self._down
        return now_s < pause.until_s and abs((cpu.foreign_cores or 0.0) - pause.foreign_cores) <= _NEWS_CORES

    def _change(self, threads: int) -> None:
        self.threads = threads
        self._recent.clear()
        self._settling = _SETTLE_STEPS

    # Whether to try.

    def _consider(self, now_s: float, cpu: CpuView) -> None:
        foreign = cpu.foreign_cores or 0.0
        if self.threads > 1:
            reason = self._pressure(cpu)
            news = foreign > self._down.foreign_cores + _NEWS_CORES
            if reason and (news or now_s >= self._down.until_s):
                self._try(self._fewer(cpu), reason, now_s, cpu)
                return
        if self.threads < self._most:
            target = self._fitting(cpu)
            has_room = target is not None and target > self.threads
            news = has_room and foreign < self._up.foreign_cores - _NEWS_CORES
            # Where nothing is seen, and against what is seen wrongly, more threads are tried now and then.
            doubt_s = 0.0 if target is None or has_room else self._doubt_s
            if news or now_s >= self._up.until_s + doubt_s:
                more = target if has_room and target is not None else self.threads + self._stride()
                self._try(min(more, self._most), "more cores seem free", now_s, cpu)

    def _pressure(self, cpu: CpuView) -> str:
        """Why fewer threads may be faster; "" for no reason."""
        target = self._fitting(cpu)
        if target is not None and target < self.threads:
            return _words(cpu)
        if cpu.own_share is not None and cpu.own_share < _OWN_SHARE:
            return f"threads ran {cpu.own_share:.0%} of the time"
        if cpu.hot:
            return "the processor is throttled by heat"
        latest = list(self._recent)[-_BEFORE_STEPS:]
        if self._cost(latest[-1:]) > _VERY_SLOW and latest[-1].ms > _LONG_S * 1000.0:
            return "a step took very long"
        if all(not s.prefilled and self._cost([s]) > _SLOW for s in latest):
            return "steps are slower than they were"
        return ""

    def _fitting(self, cpu: CpuView) -> int | None:
        """How many threads have a core to themselves."""
        free = cpu.free_cores(self.threads)
        return None if free is None else max(1, min(self._most, math.floor(free + _TAKEN)))

    def _fewer(self, cpu: CpuView) -> int:
        target = self._fitting(cpu)
        if target is not None and target < self.threads:
            return target
        return max(1, self.threads - self._stride())

    def _stride(self) -> int:
        return max(1, self._most // 4)

    def _try(self, threads: int, reason: str, now_s: float, cpu: CpuView) -> None:
        before = [s for s in self._recent if s.at_s >= now_s - _BEFORE_S]
        if len(before) < _BEFORE_STEPS:
            before = list(self._recent)[-_BEFORE_STEPS:]
        seconds = _HEAT_TRIAL_S if cpu.hot else _TRIAL_S
        self._trial = _Trial(self.threads, before, cpu.foreign_cores or 0.0, seconds, reason)
        self._change(threads)

    # Whether to keep.

    def _is_decided(self, trial: _Trial, now_s: float) -> bool:
        first = self._recent[0]
        return len(self._recent) >= _TRIAL_STEPS and now_s - first.at_s + first.ms / 1000.0 >= trial.seconds

    def _decide(self, trial: _Trial, now_s: float, cpu: CpuView) -> None:
        before, during = _comparable(trial.before, list(self._recent))
        gained = self._cost(during) < _GAIN * self._cost(before)
        went_up, self._trial, self._doubt_s = self.threads > trial.former, None, _DOUBT_S
        pause = self._up if went_up else self._down
        if not gained:
            pause.longer(now_s, trial.foreign_cores)
            self._change(trial.former)
            return
        self.reason = trial.reason
        pause.over(now_s)
        back = self._down if went_up else self._up
        back.over(now_s + (_HEAT_PAUSE_S if cpu.hot and not went_up else _PAUSE_MIN_S))
        back.foreign_cores = trial.foreign_cores
        self._change(self.threads)

    def _cost(self, steps: list[Step]) -> float:
        """Time by what such steps take on record."""
        if not steps:
            return 0.0
        return sum(s.ms for s in steps) / sum(self._expected_ms(s.decoded, s.prefilled) for s in steps)


def _words(cpu: CpuView) -> str:
    return f"others use {cpu.foreign_cores or 0.0:.1f} cores"


def _comparable(before: list[Step], during: list[Step]) -> tuple[list[Step], list[Step]]:
    """The steps of the kind that both have most of; all where they have none in common."""
    kinds = {s.kind for s in before} & {s.kind for s in during}
    if not kinds:
        return before, during

    def common(kind: tuple[bool, int]) -> int:
        return min(sum(s.kind == kind for s in before), sum(s.kind == kind for s in during))

    kind = max(sorted(kinds), key=common)
    return [s for s in before if s.kind == kind], [s for s in during if s.kind == kind]
