"""How far predictions missed of late, and how often they did: what becomes odds.

Ratios actual / predicted are kept in windows: of TTFT per regime (an idle node, a busy one, one with a queue
miss differently), and of the three parts together. How often the predicted p95 was exceeded is counted too,
as chosen and as sent, and stretches the next one until 95 of 100 attempts keep to it (adaptive conformal
prediction with a tracked quantile): samples alone are always a little too old.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from tidegate.routing.odds import PRIOR, JointOdds, Odds, SampledJoint, SampledTtft, TtftOdds, quantile

# A 95th percentile needs 19 samples: the largest of them is one.
ENOUGH = 19
WINDOW = 100
JOINT_WINDOW = 64
REGIMES = 3
MISSES = 0.05
STEP = 0.04
# Medians are divided by: no ratio is 0, whatever a node says of its times.
LEAST_RATIO = 1e-3
_MIN_LOG, _MAX_LOG = math.log(0.7), math.log(3.0)
# A fresh window is sorted again after this share of it is new.
_STALE_SHARE = 12


class Stretch:
    """Follows how often a predicted p95 is exceeded: a miss stretches it by STEP, a hit lets go of a 19th."""

    __slots__ = ("log",)

    def __init__(self) -> None:
        self.log = 0.0

    @property
    def factor(self) -> float:
        return math.exp(self.log)

    def count(self, missed: bool) -> None:
        moved = self.log + STEP * ((1.0 if missed else 0.0) - MISSES)
        self.log = min(max(moved, _MIN_LOG), _MAX_LOG)


class TtftResiduals:
    """Of one regime: ratios to the raw prediction, their median, and the odds around it."""

    __slots__ = ("_new", "median", "odds", "ratios", "stretch")

    def __init__(self) -> None:
        self.ratios: deque[float] = deque(maxlen=WINDOW)
        self.stretch = Stretch()
        self.median = 1.0
        self.odds: TtftOdds | None = None
        self._new = 0

    def add(self, ratio: float, missed: bool) -> None:
        self.ratios.append(_sound(ratio))
        self.stretch.count(missed)
        self._new += 1
        if missed or self._new * _STALE_SHARE >= len(self.ratios):
            self.sort()

    def sort(self) -> None:
        self._new = 0
        if len(self.ratios) < ENOUGH:
            self.median, self.odds = 1.0, None
            return
        ordered = sorted(self.ratios)
        self.median = median = quantile(ordered, 0.5)
        self.odds = SampledTtft([r / median for r in ordered], self.stretch.factor)

    def keep_newest(self, count: int) -> None:
        """The node has changed: what was true before says nothing."""
        while len(self.ratios) > count:
            self.ratios.popleft()
        self.sort()


def _sound(ratio: float) -> float:
    return ratio if ratio > LEAST_RATIO else LEAST_RATIO


class JointResiduals:
    """Samples of (TTFT, per-token, total) of the same attempts, each as a ratio to its median."""

    __slots__ = ("_new", "medians", "odds", "samples", "total", "tpot")

    def __init__(self) -> None:
        self.samples: deque[tuple[float, float, float]] = deque(maxlen=JOINT_WINDOW)
        self.tpot, self.total = Stretch(), Stretch()
        self.medians = (1.0, 1.0)
        self.odds: JointOdds | None = None
        self._new = 0

    def add(self, sample: tuple[float, float, float], missed_tpot: bool, missed_total: bool) -> None:
        first, per_token, total = sample
        self.samples.append((_sound(first), _sound(per_token), _sound(total)))
        self.tpot.count(missed_tpot)
        self.total.count(missed_total)
        self._new += 1
        if self._new * _STALE_SHARE >= len(self.samples):
            self.sort()

    def sort(self) -> None:
        self._new = 0
        if len(self.samples) < ENOUGH:
            self.medians, self.odds = (1.0, 1.0), None
            return
        self.odds = SampledJoint(self.samples, (1.0, self.tpot.factor, self.total.factor))
        self.medians = self.odds.medians


class Residuals:
    """All that one node and variant, or one hardware class, missed by."""

    __slots__ = ("joint", "ttft")

    def __init__(self) -> None:
        self.ttft = tuple(TtftResiduals() for _ in range(REGIMES))
        self.joint = JointResiduals()


class Scored(NamedTuple):
    """Odds, and the medians of TTFT, per-token time and total as ratios to the raw predictions."""

    odds: Odds
    of_ttft: float
    of_tpot: float
    of_total: float


def odds_of(of_ttft: Iterable[Residuals], of_joint: Iterable[Residuals], regime: int) -> Scored:
    """By the first of each that knows enough."""
    ttft = next((pool.ttft[regime] for pool in of_ttft if pool.ttft[regime].odds is not None), None)
    joint = next((pool.joint for pool in of_joint if pool.joint.odds is not None), None)
    odds = Odds(
        PRIOR.ttft if ttft is None or ttft.odds is None else ttft.odds,
        PRIOR.joint if joint is None or joint.odds is None else joint.odds,
    )
    tpot, total = (1.0, 1.0) if joint is None else joint.medians
    return Scored(odds, 1.0 if ttft is None else ttft.median, tpot, total)
