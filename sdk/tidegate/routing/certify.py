"""Certifying a promise about answers from a deployment's own outcomes: "at most 2 % worse, 95 % sure".

Of all requests, the share that a variant would answer worse if it took every prompt up to a difficulty t:

    L(t) = E[ 1{difficulty <= t} * worse ]

A request's outcome is looked at with a logged propensity p > 0, by chance. With m, what was known before of
answers of that difficulty, the doubly robust term has mean L(t) whatever m is:

    Z(t) = 1{difficulty <= t} * ( m + looked_at / p * (worse - m) )

Whether L(t) < promise is tested by betting (Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting", 2023): a capital that starts at 1 and is multiplied by 1 + bet * (promise - Z) for each
request cannot grow in expectation while L(t) >= promise, so it reaches 1 / (1 - confidence) with a chance of
at most 1 - confidence, however often one looks (Ville's inequality). The capital is spread over several bets.
Thresholds are tested from the lowest up and stop at the first that is not proven: L rises with t, so all of
them together err with that same chance. Needs: requests come alike (no drift), and verdicts are right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

THRESHOLDS = tuple((i + 1) / 10 for i in range(10))
"""Difficulties up to which a variant may be certified."""

# Shares of the largest bet that cannot ruin: high ones win where none is worse, low ones where few are.
BETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.99)
# What is assumed of a difficulty before its first verdicts, and how many verdicts that counts for.
PRIOR_SHARE = 0.5
PRIOR_COUNT = 20.0
MANY_LABELS = 1_000_000


@dataclass(frozen=True, slots=True)
class Promise:
    """At most `worse_share` of all answers worse than the best variant's, with this confidence."""

    worse_share: float = 0.02
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not (0.0 < self.worse_share < 1.0 and 0.0 < self.confidence < 1.0):
            raise ValueError("worse_share and confidence must lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class Seen:
    """One request, in the order of time. `worse` is None where it was not looked at.

    `propensity` is the chance with which it was to be looked at, whatever its outcome. One that was looked
    at and has no verdict counts as worse: leaving it out would let silence speak for the variant.
    """

    difficulty: float
    propensity: float
    worse: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the outcomes prove.

    `threshold` is the highest difficulty up to which the promise is certified, None for none. `estimate` is
    L(1), if the variant answered everything, by the doubly robust mean. `labels_missing` is how many more
    verdicts the next threshold needs if none of them is worse; 0 when all are certified.
    """

    threshold: float | None
    requests: int
    labels: int
    worse: float
    estimate: float
    labels_missing: int


class Ledger:
    """The capital of every threshold and bet. Work is done per verdict: what lies between is counted."""

    def __init__(self, promise: Promise, floor: float, thresholds: Sequence[float] = THRESHOLDS) -> None:
        """`floor`: the least propensity there is. Raises ValueError where it is not in (0, 1]."""
        if not 0.0 < floor <= 1.0:
            raise ValueError("propensities must lie in (0, 1]")
        self._promise = promise
        self._floor = floor
        self._thresholds = tuple(thresholds)
        most = 1.0 / floor - promise.worse_share
        self._bets = tuple(share / most if most > 0 else share for share in BETS)
        bins = len(self._thresholds) + 1
        self._waiting = [0] * bins
        self._labels = [0] * bins
        self._worse = [0.0] * bins
        self._log = [[0.0] * len(self._bets) for _ in self._thresholds]
        self._nothing = self._terms(0.0)
        self._sum = 0.0
        self._requests = 0

    def add(self, seen: Seen) -> None:
        """Raises ValueError for a propensity below the floor."""
        if not self._floor <= seen.propensity <= 1.0:
            raise ValueError(f"propensity {seen.propensity} outside [{self._floor}, 1]")
        at = self._bin(seen.difficulty)
        self._requests += 1
        known = self._known(at)
        if seen.worse is None:
            self._waiting[at] += 1
            self._sum += known
            return
        self._settle()
        value = known + (seen.worse - known) / seen.propensity
        self._sum += value
        self._enter(at, value, 1)
        self._labels[at] += 1
        self._worse[at] += seen.worse

    def verdict(self) -> Verdict:
        self._settle()
        passed = 0
        while passed < len(self._thresholds) and self.proven(passed):
            passed += 1
        return Verdict(
            threshold=self._thresholds[passed - 1] if passed else None,
            requests=self._requests,
            labels=sum(self._labels),
            worse=sum(self._worse),
            estimate=self._sum / self._requests if self._requests else math.nan,
            labels_missing=0 if passed == len(self._thresholds) else self._missing(passed),
        )

    def all_proven(self) -> bool:
        """Whether the promise holds for every difficulty."""
        return all(self.proven(i) for i in range(len(self._thresholds)))

    def proven(self, index: int) -> bool:
        """Whether the promise holds up to this threshold, by its own test."""
        return _log_mean(self._log[index]) >= -math.log(1.0 - self._promise.confidence)

    def _bin(self, difficulty: float) -> int:
        for i, threshold in enumerate(self._thresholds):
            if difficulty <= threshold:
                return i
        return len(self._thresholds)

    def _known(self, at: int) -> float:
        """What verdicts so far say of a difficulty."""
        prior = PRIOR_SHARE * self._promise.worse_share * PRIOR_COUNT
        return (self._worse[at] + prior) / (self._labels[at] + PRIOR_COUNT)

    def _settle(self) -> None:
        """Enters the requests that were not looked at since the last verdict."""
        for at, count in enumerate(self._waiting):
            if count:
                self._enter(at, self._known(at), count)
                self._waiting[at] = 0

    def _enter(self, at: int, value: float, times: int) -> None:
        """Bets on Z = value for thresholds that take bin `at`, and on Z = 0 for those below it."""
        taken = [times * term for term in self._terms(value)]
        spared = [times * term for term in self._nothing]
        for i, logs in enumerate(self._log):
            for j, term in enumerate(taken if at <= i else spared):
                logs[j] += term

    def _terms(self, value: float) -> list[float]:
        share = self._promise.worse_share
        return [math.log(max(1.0 + bet * (share - value), 1e-300)) for bet in self._bets]

    def _missing(self, index: int) -> int:
        """Verdicts, none of them worse, until threshold `index` is proven."""
        wanted = -math.log(1.0 - self._promise.confidence)
        # Up to a few 1 / floor terms per verdict, all of them at most the promise: one step of growth each.
        growth = [math.log1p(bet * (self._promise.worse_share - 0.0)) / self._floor for bet in self._bets]
        low, high = 0, 1
        while _log_mean([a + high * g for a, g in zip(self._log[index], growth, strict=True)]) < wanted:
            low, high = high, high * 2
            if high > MANY_LABELS:
                return MANY_LABELS
        while high - low > 1:
            middle = (low + high) // 2
            grown = [a + middle * g for a, g in zip(self._log[index], growth, strict=True)]
            low, high = (low, middle) if _log_mean(grown) >= wanted else (middle, high)
        return high


def certify(seen: Iterable[Seen], promise: Promise, floor: float) -> Verdict:
    """The verdict on a whole log, oldest first."""
    ledger = Ledger(promise, floor)
    for each in seen:
        ledger.add(each)
    return ledger.verdict()


def _log_mean(logs: Sequence[float]) -> float:
    """Logarithm of the mean of exp(logs)."""
    most = max(logs)
    return most + math.log(sum(math.exp(value - most) for value in logs) / len(logs))
