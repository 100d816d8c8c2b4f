"""What the contention benchmark makes of its rounds."""

from __future__ import annotations

import pytest

from benchmarks.bench_contention import ADAPTIVE, BARS, CALM, DISTURBED, ONSET, Taken, rows_of
from benchmarks.common import CannotMeasure


def taken(adaptive: float, one: float, two: float) -> Taken:
    return Taken({ADAPTIVE: [adaptive] * 3, "1 thread": [one] * 3, "2 threads": [two, 1000.0, two]})


def test_the_better_fixed_setting_is_the_measure() -> None:
    assert taken(90.0, 100.0, 20.0).ratio() == pytest.approx(0.9)
    assert taken(90.0, 50.0, 100.0).ratio() == pytest.approx(0.9)


def test_each_state_has_its_bar() -> None:
    figures = {
        CALM: taken(95.0, 50.0, 100.0),
        DISTURBED: taken(86.0, 100.0, 9.0),
        ONSET: taken(1.0, 9.0, 9.0),
    }
    assert list(figures) == list(BARS)
    held = {row.name: row.holds for row in rows_of("m", figures) if "by best fixed" in row.name}
    assert list(held.values()) == [False, True, True]


def test_without_a_free_round_there_is_no_figure() -> None:
    with pytest.raises(CannotMeasure, match="free of other work"):
        rows_of("m", {state: Taken() for state in BARS})
