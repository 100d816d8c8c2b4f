"""How far predictions miss, as odds: from samples of actual / predicted, or a lognormal where there are none.

All arguments and quantiles are ratios to the predicted medians. Odds are immutable and cheap to ask: a joint
question costs a few bit operations, whatever the number of samples.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from operator import or_
from typing import NamedTuple, Protocol

PRIOR_SPREAD = 0.25
Z95 = 1.6448536
# Beyond the samples the odds fade with this power of the ratio: the tail of a wide lognormal.
TAIL_POWER = 6.0
_SQRT2 = math.sqrt(2.0)
_erfc, _log = math.erfc, math.log


class TtftOdds(Protocol):
    @property
    def p95(self) -> float: ...

    def within(self, ratio: float) -> float:
        """P(actual / predicted <= ratio), continuous and rising."""
        ...


class JointOdds(Protocol):
    @property
    def tpot_p95(self) -> float: ...

    @property
    def total_p95(self) -> float: ...

    def within(self, ttft: float | None, tpot: float | None, total: float | None) -> float:
        """P(all ratios given are kept); rising in each of them."""
        ...


class LogNormal:
    """Errors nobody has measured yet: a lognormal factor, of TTFT and per-token time independently."""

    __slots__ = ("p95", "spread", "total_p95", "tpot_p95")

    def __init__(self, spread: float = PRIOR_SPREAD) -> None:
        self.spread = spread
        self.p95 = self.tpot_p95 = self.total_p95 = math.exp(Z95 * spread)

    def within(
        self, ttft: float | None = None, tpot: float | None = None, total: float | None = None
    ) -> float:
        """The total contains both others, so it takes the worse of its own odds and theirs together."""
        odds = 1.0
        if ttft is not None:
            odds = self._one(ttft)
        if tpot is not None:
            odds *= self._one(tpot)
        return odds if total is None else min(odds, self._one(total))

    def _one(self, ratio: float) -> float:
        return 0.5 * _erfc(-_log(ratio) / (self.spread * _SQRT2)) if ratio > 0.0 else 0.0


class SampledTtft:
    """From at least two ratios. `stretch` is how much longer than the samples say an attempt may take."""

    __slots__ = ("_last", "_ratios", "_size", "_stretch", "p95")

    def __init__(self, ratios: Sequence[float], stretch: float = 1.0) -> None:
        self._ratios = sorted(ratios)
        self._size, self._stretch = len(self._ratios), stretch
        self._last = self._ratios[-1]
        self.p95 = quantile(self._ratios, 0.95) * stretch

    def within(self, ratio: float) -> float:
        ratio /= self._stretch
        if ratio >= self._last:
            return 1.0 - math.pow(self._last / ratio, TAIL_POWER) / (self._size + 1)
        ratios = self._ratios
        at = bisect_right(ratios, ratio)
        if at == 0:
            return math.pow(max(ratio, 0.0) / ratios[0], TAIL_POWER) / (self._size + 1)
        low, high = ratios[at - 1], ratios[at]
        return (at + (ratio - low) / (high - low)) / (self._size + 1)


class _Part:
    """One of the three parts of the samples: `masks[i]` are those with the i smallest ratios, as bits."""

    __slots__ = ("masks", "median", "p95", "ratios")

    def __init__(self, values: Sequence[float], stretch: float, *, centred: bool) -> None:
        order = sorted(range(len(values)), key=values.__getitem__)
        self.ratios = list(map(values.__getitem__, order))
        self.median = quantile(self.ratios, 0.5) if centred else 1.0
        if centred:
            median = self.median
            self.ratios = [value / median for value in self.ratios]
        self.p95 = quantile(self.ratios, 0.95) * stretch
        self.masks = list(accumulate(map((1).__lshift__, order), or_, initial=0))

    def keeping(self, ratio: float) -> int:
        return self.masks[bisect_right(self.ratios, ratio)]


class SampledJoint:
    """From samples of all three ratios of the same attempts, so that what errs together counts together.

    Those of TTFT are to its median already; of the others `medians` are found here and divided out. Most
    limits lie beyond every sample: then the largest of each part is all that is looked at.
    """

    __slots__ = ("_all", "_limits", "_parts", "_size", "medians", "total_p95", "tpot_p95")

    def __init__(
        self,
        samples: Collection[tuple[float, float, float]],
        stretch: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> None:
        self._size = len(samples)
        self._all = (1 << self._size) - 1
        ttfts, tpots, totals = zip(*samples, strict=True)
        ttft = _Part(ttfts, stretch[0], centred=False)
        tpot = _Part(tpots, stretch[1], centred=True)
        total = _Part(totals, stretch[2], centred=True)
        self._parts = ttft, tpot, total
        # The largest ratio of each part and its stretch, side by side: mostly nothing else is looked at.
        lasts = ttft.ratios[-1], tpot.ratios[-1], total.ratios[-1]
        self._limits = (*lasts, *[times + 0.0 for times in stretch])
        self.medians = tpot.median, total.median
        self.tpot_p95, self.total_p95 = tpot.p95, total.p95

    def within(self, ttft: float | None, tpot: float | None, total: float | None) -> float:
        keeping, size = self._all, self._size + 1
        last_ttft, last_tpot, last_total, of_ttft, of_tpot, of_total = self._limits
        # How far the tail behind the last sample still reaches, of the part where it reaches furthest.
        reach = 0.0
        if ttft is not None:
            ratio = ttft / of_ttft
            if ratio >= last_ttft:
                reach = last_ttft / ratio
            else:
                keeping = self._parts[0].keeping(ratio)
        if tpot is not None:
            ratio = tpot / of_tpot
            if ratio >= last_tpot:
                if last_tpot > reach * ratio:
                    reach = last_tpot / ratio
            else:
                keeping &= self._parts[1].keeping(ratio)
        if total is not None:
            ratio = total / of_total
            if ratio >= last_total:
                if last_total > reach * ratio:
                    reach = last_total / ratio
            else:
                keeping &= self._parts[2].keeping(ratio)
        if keeping == self._all:
            return 1.0 - math.pow(reach, TAIL_POWER) / size
        if keeping:
            return (keeping.bit_count() + 0.5) / size
        smallest = min(r for r in (ttft, tpot, total) if r is not None)
        return 0.5 * math.pow(min(max(smallest, 0.0), 1.0), TAIL_POWER) / size


class Odds(NamedTuple):
    """What one prediction carries."""

    ttft: TtftOdds
    joint: JointOdds

    @property
    def ttft_p95(self) -> float:
        return self.ttft.p95

    @property
    def tpot_p95(self) -> float:
        return self.joint.tpot_p95

    @property
    def total_p95(self) -> float:
        return self.joint.total_p95


_LOGNORMAL = LogNormal()
PRIOR = Odds(_LOGNORMAL, _LOGNORMAL)


def quantile(ordered: Sequence[float], share: float) -> float:
    """With the rank share * (n + 1), as conformal prediction asks; beyond the last sample it is the last."""
    rank = share * (len(ordered) + 1) - 1.0
    if rank <= 0.0:
        return ordered[0]
    at = int(rank)
    if at >= len(ordered) - 1:
        return ordered[-1]
    return ordered[at] + (rank - at) * (ordered[at + 1] - ordered[at])
