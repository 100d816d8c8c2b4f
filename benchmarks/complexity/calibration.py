"""From an order to odds, and how far odds are from what happened."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# The odds keep the order of the need even where labels say nothing of it.
LEAST_SLOPE = -1e-3
NEWTON_STEPS = 25


@dataclass(frozen=True, slots=True)
class Platt:
    """1 / (1 + exp(-(level + slope * need))), with need in standard deviations."""

    level: float
    slope: float

    def __call__(self, need: Floats) -> Floats:
        odds: Floats = 1.0 / (1.0 + np.exp(-(self.level + self.slope * need)))
        return odds


def fit_platt(need: Floats, good: Floats) -> Platt:
    """Logistic regression of good in [0, 1] on the need, by Newton's method; the slope falls."""
    x = np.stack([np.ones_like(need), need], axis=1)
    weights = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        odds = 1.0 / (1.0 + np.exp(-x @ weights))
        curve = x.T @ (x * (odds * (1.0 - odds))[:, None]) + 1e-3 * np.eye(2)
        weights = weights + np.linalg.solve(curve, x.T @ (good - odds) - 1e-3 * weights)
    if weights[1] > LEAST_SLOPE:
        share = float(np.clip(good.mean(), 1e-3, 1.0 - 1e-3))
        return Platt(float(np.log(share / (1.0 - share))), LEAST_SLOPE)
    return Platt(float(weights[0]), float(weights[1]))


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of alike odds: how many, what was said, and what came."""

    count: int
    said: float
    came: float


def curve(said: Floats, came: Floats, bins: int = 10) -> list[Bin]:
    """Bins of equal width over [0, 1]; empty ones are left out."""
    index = np.minimum((said * bins).astype(int), bins - 1)
    found = []
    for each in np.unique(index):
        inside = index == each
        found.append(Bin(int(inside.sum()), float(said[inside].mean()), float(came[inside].mean())))
    return found


def expected_error(said: Floats, came: Floats, bins: int = 10) -> float:
    """ECE: the mean distance between said and came, weighted by rows."""
    return sum(b.count * abs(b.said - b.came) for b in curve(said, came, bins)) / len(said)
