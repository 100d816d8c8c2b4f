"""Made-up deployments whose truth is known: how often is a certificate wrong, and what does one cost?

Each run draws how often answers are worse, as a function of difficulty, near enough to the promise for
errors to be possible. Its log is looked at again and again, as an operator would; one wrong certificate at
any look makes the run a violation."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tidegate.routing.certify import THRESHOLDS, Ledger, Promise, Seen

WorseAt = Callable[[float], float]
LOOKS = 5


@dataclass(frozen=True, slots=True)
class Run:
    """`violated`: some look certified what is not true. `labels_to_all`: None where not all was certified."""

    violated: bool
    certified: float | None
    labels: int
    labels_to_all: int | None


def drawn_deployment(rng: random.Random, promise: Promise) -> WorseAt:
    """Flat, rising, or a step; between a quarter of the promise and twice of it is worse on the whole."""
    whole = promise.worse_share * rng.uniform(0.25, 2.0)
    kind, power, step = rng.randrange(3), rng.uniform(0.5, 3.0), rng.uniform(0.2, 0.8)
    if kind == 0:
        return lambda d: whole
    if kind == 1:
        return lambda d: min(whole * (power + 1.0) * d**power, 1.0)
    return lambda d: 0.0 if d < step else min(whole / (1.0 - step), 1.0)


def true_share(worse_at: WorseAt, threshold: float, steps: int = 2000) -> float:
    """L(threshold) for difficulties that come evenly."""
    return sum(worse_at((i + 0.5) / steps) for i in range(int(steps * threshold))) / steps


def run(seed: int, promise: Promise, *, requests: int, share: float, worse_at: WorseAt | None = None) -> Run:
    """`share` of the requests are drawn for a verdict."""
    rng = random.Random(seed)
    worse_at = worse_at or drawn_deployment(rng, promise)
    truth = {t: true_share(worse_at, t) for t in THRESHOLDS}
    ledger = Ledger(promise, share)
    violated, labels, to_all = False, 0, None
    verdict = ledger.verdict()
    for number in range(1, requests + 1):
        difficulty = rng.random()
        drawn = rng.random() < share
        labels += drawn
        worse = float(rng.random() < worse_at(difficulty)) if drawn else None
        ledger.add(Seen(difficulty, share, worse))
        if number % (requests // LOOKS) == 0:
            verdict = ledger.verdict()
            violated |= verdict.threshold is not None and truth[verdict.threshold] > promise.worse_share
        if drawn and to_all is None and ledger.all_proven():
            to_all = labels
    return Run(violated, verdict.threshold, labels, to_all)
