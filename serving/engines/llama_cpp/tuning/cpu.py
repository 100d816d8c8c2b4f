"""What others take of the processor: read from Linux's files, a few times a second at most.

Where a file is missing, as on other systems or in narrow containers, that part of the view is unknown.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path

from serving.engines.llama_cpp.tuning.policy import CpuView

_LOOK_EVERY_S = 0.2
# The kernel counts in hundredths of a second.
_LEAST_LOOK_S = 0.1
_HEAT_EVERY_S = 2.0
_HEAT_LASTS_S = 10.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Reading:
    at_s: float
    own_s: float
    busy_s: float | None


class CpuWatch:
    """Called after every step; reads files only when the last look is old. `root` holds proc/ and sys/."""

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        clock: Callable[[], float] = time.monotonic,
        own_cpu_s: Callable[[], float] | None = None,
        allowed: Set[int] | None = None,
    ) -> None:
        self._root, self._clock = root, clock
        self._own_cpu_s = own_cpu_s or _own_cpu_s
        self._allowed = _allowed() if allowed is None else allowed
        self._known = CpuView(len(self._allowed), quota(root))
        self._last = self._read()
        self._asked_s = 0.0
        self._heat = HeatWatch(root, self._allowed)
        self._heat_due_s = self._last.at_s
        self._hot_until_s = -1.0
        self.view = self._known

    def after_step(self, threads: int, step_s: float) -> CpuView:
        """`threads` computed for `step_s`."""
        self._asked_s += threads * step_s
        now_s = self._clock()
        if now_s - self._last.at_s >= _LOOK_EVERY_S:
            self._look(now_s)
        return self.view

    def look(self) -> CpuView:
        """Between steps, when nothing is computed; others who have just ended do not count any more."""
        now_s = self._clock()
        if now_s - self._last.at_s >= _LEAST_LOOK_S:
            self._asked_s = 0.0
            self._look(now_s)
        foreign, running = self.view.foreign_cores, others_running(self._root)
        if foreign is not None and running is not None and running < foreign:
            return replace(self.view, foreign_cores=float(running))
        return self.view

    def _look(self, now_s: float) -> None:
        last, self._last = self._last, self._read()
        passed_s, own_s = now_s - last.at_s, self._last.own_s - last.own_s
        foreign = None
        if self._last.busy_s is not None and last.busy_s is not None:
            foreign = max(0.0, self._last.busy_s - last.busy_s - own_s) / passed_s
        # After a pause most of the time was not asked for; a few steps say little.
        share = min(1.0, own_s / self._asked_s) if self._asked_s > passed_s / 2 else None
        self._asked_s = 0.0
        if now_s >= self._heat_due_s:
            self._heat_due_s = now_s + _HEAT_EVERY_S
            if self._heat.is_throttled():
                self._hot_until_s = now_s + _HEAT_LASTS_S
        self.view = replace(
            self._known,
            foreign_cores=foreign,
            own_cores=own_s / passed_s,
            own_share=share,
            hot=now_s < self._hot_until_s,
        )

    def _read(self) -> _Reading:
        return _Reading(self._clock(), self._own_cpu_s(), busy_s(self._root, self._allowed))


def busy_s(root: Path, cores: Set[int]) -> float | None:
    """Seconds that these cores were not idle, with what the host of a virtual machine took; None: unknown."""
    total, found = 0, False
    for line in _lines(root / "proc/stat"):
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
            total += user + nice + system + irq + softirq + steal
            found = True
    return total / _TICKS_PER_S if found else None


def others_running(root: Path) -> int | None:
    """Threads of the whole machine that want a core now, without the one that asks; None: unknown."""
    for line in _lines(root / "proc/stat"):
        name, _, count = line.partition(" ")
        if name == "procs_running" and count.isdigit():
            return max(0, int(count) - 1)
    return None


def quota(root: Path) -> float:
    """How many cores the control groups of this process let it fill; infinite without a limit."""
    return min(_quotas(root), default=math.inf)


def _quotas(root: Path) -> Iterator[float]:
    """In cores, from this process's control group up to the root of its hierarchy."""
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for level in _levels(root / "sys/fs/cgroup", path):
                limit, period = _two_numbers(" ".join(_lines(level / "cpu.max")))
                if limit > 0:
                    yield limit / period
        elif "cpu" in controllers.split(","):
            for level in _levels(root / "sys/fs/cgroup/cpu", path):
                files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                limit, period = _two_numbers(" ".join(" ".join(_lines(level / file)) for file in files))
                if limit > 0:
                    yield limit / period


def _levels(base: Path, path: str) -> Iterator[Path]:
    """Inside a container the group's own path may not exist: the root that it sees is then its own group."""
    group = base / path.strip("/")
    yield group
    while group != base:
        group = group.parent
        yield group


def _two_numbers(text: str) -> tuple[float, float]:
    """(0, 1) for "max" and for what is no pair of numbers."""
    with contextlib.suppress(ValueError):
        limit, period = map(float, text.split())
        if period > 0:
            return limit, period
    return 0.0, 1.0


class HeatWatch:
    """Whether heat holds the processor back: by its counters, else by the clock that it is allowed."""

    def __init__(self, root: Path, cores: Set[int]) -> None:
        folder = root / "sys/devices/system/cpu"
        names = ("core_throttle_count", "package_throttle_count")
        self._counters = [
            path
            for core in cores
            for name in names
            if (path := folder / f"cpu{core}/thermal_throttle/{name}").exists()
        ]
        self._limits = [folder / f"cpu{core}/cpufreq/scaling_max_freq" for core in cores]
        self._counted = self._count()
        self._allowed_khz = sum(map(_number, self._limits))

    def is_throttled(self) -> bool:
        """Since the last call; by the clock, now: cooling lowers its limit below what it was at the start."""
        if self._counters:
            before, self._counted = self._counted, self._count()
            return self._counted > before
        return sum(map(_number, self._limits)) < self._allowed_khz

    def _count(self) -> int:
        return sum(map(_number, self._counters))


def _number(path: Path) -> int:
    for line in _lines(path):
        with contextlib.suppress(ValueError):
            return int(line)
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _own_cpu_s() -> float:
    """Of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _allowed() -> Set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
