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

MAX_THETA = 100.0
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
_LEAST_PRIOR = 0.3
_SAME_SCALE = 0.02
# Times below this are all jitter; relative errors of them mean nothing.
_FLOOR_MS = 5.0


class Regression:
    """`prior` is read, never written: handing in another regression's `theta` pools the two.

    `precision` is how many observations the prior is worth for a part that makes up the whole time. What is
    pooled over many nodes does not change when one of them does: `drifts` is False there.
    """

    __slots__ = ("b", "drift", "drifts", "precision", "prior", "s", "spread", "theta", "weight")

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

    @property
    def is_young(self) -> bool:
        return self.weight < _YOUNG

    def expect(self, parts: Sequence[float]) -> float:
        return math.fsum(map(mul, self.theta, parts))

    def learn(self, parts: Sequence[float], actual: float, strength: float = 1.0) -> bool:
        """One more observation; True when it confirms that the node has changed."""
        expected = max(self.expect(parts), _FLOOR_MS)
        miss = math.log(max(actual, _FLOOR_MS) / expected)
        standard = miss / self.spread
        clipped = min(max(standard, -_MAX_MISS), _MAX_MISS)
        self.drift += strength * _DRIFT_WEIGHT * (clipped - self.drift)
        changed = self.drifts and abs(self.drift) > CHANGED and self.drift * miss > 0.0
        if self.drifts and not changed and not self.is_young and abs(standard) > _MAX_MISS:
            actual = expected * math.exp(clipped * self.spread)
        if not changed:
            square = self.spread**2 + strength * _SPREAD_WEIGHT * (min(miss * miss, 1.0) - self.spread**2)
            self.spread = min(max(math.sqrt(square), _MIN_SPREAD), _MAX_SPREAD)
        self._add(parts, actual, strength / (expected * expected), KEEP_CHANGED if changed else KEEP)
        self.weight += strength
        self.solve()
        self._rescale(max(self.expect(parts), _FLOOR_MS) / expected)
        return changed

    def _rescale(self, times: float) -> None:
        """Expectations became so many times longer: what an observation weighs is relative to them, those of
        before included, or the evidence of fast times would never be outweighed by that of slow ones."""
        if abs(times - 1.0) > _SAME_SCALE:
            keep = 1.0 / (times * times)
            self.b = [keep * value for value in self.b]
            self.s = [[keep * value for value in row] for row in self.s]

    def _add(self, parts: Sequence[float], actual: float, weight: float, keep: float) -> None:
        self.weight *= keep
        b = self.b
        for i, row in enumerate(self.s):
            part = parts[i]
            if part == 0.0:
                b[i] *= keep
                self.s[i] = [keep * value for value in row]
                continue
            scaled = weight * part
            b[i] = keep * b[i] + scaled * actual
            self.s[i] = [keep * value + scaled * other for value, other in zip(row, parts, strict=True)]

    def solve(self, sweeps: int = 1) -> None:
        """Moves the thetas towards the solution, one after the other; repeated calls converge."""
        theta, b, prior = self.theta, self.b, self.prior
        for _ in range(sweeps):
            for i, row in enumerate(self.s):
                own, mean = row[i], prior[i]
                # As sure of a large theta as of a small one, in relation to it.
                scale = max(mean, theta[i], _LEAST_PRIOR)
                precision = self.precision / (scale * scale)
                value = precision * mean + b[i]
                if own:
                    value -= sum(map(mul, row, theta)) - own * theta[i]
                value /= precision + own
                theta[i] = 0.0 if value < 0.0 else value if value < MAX_THETA else MAX_THETA

    def fade(self, keep: float) -> None:
        """Lets go of a share of what was learned, towards the prior."""
        self.weight *= keep
        self.b = [keep * value for value in self.b]
        self.s = [[keep * value for value in row] for row in self.s]
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
