from __future__ import annotations

import pytest

from serving.engines.llama_cpp.meter import SpeedMeter


def test_between_and_beyond_measured_sizes_it_is_linear() -> None:
    meter = SpeedMeter(100.0, {1: 10.0, 2: 14.0, 4: 20.0})
    assert meter.expected_step_ms(0) == 0.0
    assert meter.expected_step_ms(2) == 14.0
    assert meter.expected_step_ms(3) == pytest.approx(17.0)
    assert meter.expected_step_ms(8) == pytest.approx(32.0)
    assert meter.decode_curve() == [(1, 100.0), (2, pytest.approx(71.43, abs=0.01)), (4, 50.0)]


def test_one_measured_size_stands_for_all() -> None:
    assert SpeedMeter(100.0, {1: 10.0}).expected_step_ms(4) == 10.0


def test_real_steps_move_the_figures_towards_what_they_took() -> None:
    meter = SpeedMeter(100.0, {1: 10.0, 2: 14.0})
    for _ in range(100):
        meter.observe(decoded=1, prefilled=0, step_ms=20.0)
    assert meter.expected_step_ms(1) == pytest.approx(20.0, rel=0.02)
    assert meter.expected_step_ms(2) > 18.0


def test_prefill_is_what_remains_of_a_mixed_step() -> None:
    meter = SpeedMeter(100.0, {1: 10.0, 2: 14.0})
    for _ in range(100):
        meter.observe(decoded=2, prefilled=50, step_ms=114.0)
    assert meter.prefill_tokens_per_s == pytest.approx(500.0, rel=0.02)
    assert meter.expected_step_ms(2) == 14.0


def test_a_few_prompt_tokens_say_nothing() -> None:
    meter = SpeedMeter(100.0, {1: 10.0})
    meter.observe(decoded=0, prefilled=3, step_ms=500.0)
    meter.observe(decoded=0, prefilled=0, step_ms=0.0)
    assert meter.prefill_tokens_per_s == 100.0


def test_a_curve_can_be_taken_up_again() -> None:
    meter = SpeedMeter(100.0, {1: 10.0, 4: 20.0})
    again = SpeedMeter.of_curve(100.0, meter.decode_curve())
    assert again.decode_curve() == meter.decode_curve()
    assert again.prefill_tokens_per_s == 100.0
