"""Bayesian linear regression with forgetting, for times that are sums of non-negative parts.

    y = theta_1 z_1 + ... + theta_n z_n        theta_i >= 0

The parts z_i are milliseconds that something is expected to take, so that every theta is "how many times as
long as expected", 1 where nothing was learned. Errors are relative: an observation weighs 1 / expected^2.
Each theta has a normal prior, whose mean may be another regression's thetas (a node's is its hardware class).

What is learned fades with every further observation. When several misses in a row lie on one side the node
has changed: older evidence is then dropped much faster, so that a node ten times slower than it was is known
after a handful of answers, while a single wild answer moves little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

from tidegate.routing.sweeps import ADDS, SCALES, SWEEPS, add_any, scale_any, sweep_any

KEEP = 0.98
# Evidence left after an observation that confirms a change.
KEEP_CHANGED = 0.35
# How far the moving mean of standardised misses must be from 0 to be a change; noise alone has sigma 0.42.
CHANGED = 1.4
_DRIFT_WEIGHT = 0.3
_SPREAD_WEIGHT = 0.05
_START_SPREAD, _MIN_SPREAD, _MAX_SPREAD = 0.25, 0.08, 0.8
_MAX_MISS = 3.0
# With so few observations no miss is wild: nothing is known yet.
_YOUNG = 5.0
_SAME_SCALE = 0.02
# Times below this are all jitter; relative errors of them mean nothing.
_FLOOR_MS = 5.0


class Regression:
    """`prior` is read, never written: handing in another regression's `theta` pools the two.

    `precision` is how many observations the prior is worth for a part that makes up the whole time. What is
    pooled over many nodes does not change when one of them does: `drifts` is False there.
    """

    __slots__ = (
        "_add",
        "_scale",
        "_sweep",
        "b",
        "drift",
        "drifts",
        "precision",
        "prior",
        "s",
        "spread",
        "theta",
        "weight",
    )

    def __init__(self, prior: Sequence[float], precision: float, *, drifts: bool = True) -> None:
        size = len(prior)
        self.prior = prior
        self.precision = precision
        self.drifts = drifts
        self.theta = list(prior)
        self.s = [[0.0] * size for _ in range(size)]
        self.b = [0.0] * size
        self.weight = 0.0
        self.drift = 0.0
        self.spread = _START_SPREAD
        self._add = ADDS.get(size, add_any)
        self._sweep = SWEEPS.get(size, sweep_any)
        self._scale = SCALES.get(size, scale_any)

    @property
    def is_young(self) -> bool:
        return self.weight < _YOUNG

    def expect(self, parts: Sequence[float]) -> float:
        return math.fsum(map(mul, self.theta, parts))

    def learn(self, parts: Sequence[float], actual: float, strength: float = 1.0) -> bool:
        """One more observation; True when it confirms that the node has changed."""
        expected = math.fsum(map(mul, self.theta, parts))
        if expected < _FLOOR_MS:
            expected = _FLOOR_MS
        miss = math.log((actual if actual > _FLOOR_MS else _FLOOR_MS) / expected)
        spread = self.spread
        standard = clipped = miss / spread
        if clipped > _MAX_MISS:
            clipped = _MAX_MISS
        elif clipped < -_MAX_MISS:
            clipped = -_MAX_MISS
        drift = self.drift = self.drift + strength * _DRIFT_WEIGHT * (clipped - self.drift)
        changed = self.drifts and abs(drift) > CHANGED and drift * miss > 0.0
        if not changed:
            if standard != clipped and self.drifts and self.weight >= _YOUNG:
                actual = expected * math.exp(clipped * spread)
            self._spread_by(miss * miss, strength)
        keep = KEEP_CHANGED if changed else KEEP
        s, b, theta = self.s, self.b, self.theta
        self._add(s, b, parts, actual, strength / (expected * expected), keep)
        self.weight = self.weight * keep + strength
        self._sweep(s, b, theta, self.prior, self.precision)
        now = math.fsum(map(mul, theta, parts))
        self._rescale((now if now > _FLOOR_MS else _FLOOR_MS) / expected)
        return changed

    def _spread_by(self, square: float, strength: float) -> None:
        old = self.spread**2
        spread = math.sqrt(old + strength * _SPREAD_WEIGHT * ((square if square < 1.0 else 1.0) - old))
        self.spread = _MIN_SPREAD if spread < _MIN_SPREAD else spread if spread < _MAX_SPREAD else _MAX_SPREAD

    def _rescale(self, times: float) -> None:
        """Expectations became so many times longer: what an observation weighs is relative to them, those of
        before included, or the evidence of fast times would never be outweighed by that of slow ones."""
        if abs(times - 1.0) > _SAME_SCALE:
            self._scale(self.s, self.b, 1.0 / (times * times))

    def solve(self, sweeps: int = 1) -> None:
        """Moves the thetas towards the solution, one after the other; repeated calls converge."""
        for _ in range(sweeps):
            self._sweep(self.s, self.b, self.theta, self.prior, self.precision)

    def fade(self, keep: float) -> None:
        """Lets go of a share of what was learned, towards the prior."""
        self.weight *= keep
        self._scale(self.s, self.b, keep)
        self.drift *= keep
        self.solve(4)

    def rebase(self, ratios: Sequence[float]) -> None:
        """The parts are expected to take `ratios` times as long from now on: the same times, in new units."""
        self.b = [value * r for value, r in zip(self.b, ratios, strict=True)]
        self.s = [
            [value * r * q for value, q in zip(row, ratios, strict=True)]
            for row, r in zip(self.s, ratios, strict=True)
        ]
        self.theta = [value / r for value, r in zip(self.theta, ratios, strict=True)]
        self.solve(4)
