"""What is written out for one size computes what the loops compute, to the last bit."""

from __future__ import annotations

import copy
from random import Random

import pytest

from tidegate.routing.regression import Regression
from tidegate.routing.sweeps import ADDS, SWEEPS, add_any, scale_any, sweep_any


@pytest.mark.parametrize("size", sorted(SWEEPS))
def test_a_size_written_out_learns_as_the_loops_do(size: int) -> None:
    rng = Random(size)
    written, looped = (Regression([1.0] * size, 0.08) for _ in range(2))
    looped._add, looped._sweep, looped._scale = add_any, sweep_any, scale_any
    assert written._add is ADDS[size]
    for step in range(300):
        parts = [rng.uniform(1.0, 300.0) if rng.random() < 0.7 else 0.0 for _ in range(size)]
        actual = sum(parts) * rng.lognormvariate(0.0, 0.3) * (8.0 if step > 200 else 1.0)
        changed = [each.learn(parts, actual, 0.7) for each in (written, looped)]
        assert changed[0] == changed[1]
        if step % 50 == 0:
            written.fade(0.5)
            looped.fade(0.5)
    assert (written.theta, written.s, written.b) == (looped.theta, looped.s, looped.b)
    assert max(written.theta) > 2.0  # it did learn


@pytest.mark.parametrize("size", sorted(SWEEPS))
def test_a_theta_stays_within_its_limits(size: int) -> None:
    one = Regression([1.0] * size, 0.08)
    one.learn([1000.0] * size, 1e9)
    assert max(one.theta) == 100.0
    theta = copy.copy(one.theta)
    one.b[:] = [-1e9] * size
    one.solve()
    assert min(one.theta) == 0.0
    assert one.theta != theta
