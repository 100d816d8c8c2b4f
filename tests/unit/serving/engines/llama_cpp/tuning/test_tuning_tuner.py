"""The device is measured while the engine is idle: a pretended context, whose steps take pretended time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from serving.engines.llama_cpp.protocol import ChildConfig
from serving.engines.llama_cpp.tuning.cpu import CpuWatch
from serving.engines.llama_cpp.tuning.device import DeviceTuning
from serving.engines.llama_cpp.tuning.policy import CpuView
from serving.engines.llama_cpp.tuning.tuner import SelfTuner, Wanted
from serving.engines.llama_cpp.variants.curve import Curve, best_threads
from serving.engines.llama_cpp.variants.sweep import Sweep

TRIED = [1, 2]


class Context:
    """A step takes 8 ms and 1 ms a token, spread over the threads."""

    def __init__(self) -> None:
        self.now_s, self.threads, self.steps = 0.0, 1, 0
        self.tokens, self.positions, self.sequence_ids, self.outputs = (
            np.zeros(512, np.int32) for _ in range(4)
        )
        self.is_clear = True
        self.is_told = True
        self.on_step: Callable[[], None] = lambda: None

    def set_threads(self, count: int) -> None:
        self.threads = count

    def decode(self, count: int) -> bool:
        self.now_s += (8.0 + count) / 1000.0 / self.threads
        self.steps += 1
        self.is_clear = self.is_told = False
        self.on_step()
        return True

    def truncate(self, sequence: int, length: int) -> bool:
        return True

    def clear(self) -> None:
        self.is_clear = True

    def told(self) -> None:
        """What lay here before the measuring is known to be lost."""
        self.is_told = self.is_clear

    def clock(self) -> float:
        return self.now_s


class Watch(CpuWatch):
    """Sees others as busy as it is told, one value an answer and then none."""

    def __init__(self, *foreign: float) -> None:
        self._foreign = list(foreign)

    def after_step(self, threads: int, step_s: float) -> CpuView:
        return CpuView(2, foreign_cores=self._foreign.pop(0) if self._foreign else 0.0)


def tuner(context: Any, done: Callable[[list[Curve]], None], watch: CpuWatch) -> SelfTuner:
    wanted = Wanted(1000, 512, threads=1, threads_to_try=TRIED, sizes=[1, 4], after_s=0.001)
    return SelfTuner(context, wanted, done, context.told, watch, context.clock)


def test_a_sweep_finds_what_steps_take() -> None:
    context: Any = Context()
    prompt = np.zeros(256, np.int32)
    measuring = Sweep(context, prompt, threads=TRIED, sizes=[4, 1], point_s=0.1, clock=context.clock)
    for _ in measuring.steps():
        pass
    one, two = measuring.curves
    assert (one.threads, two.threads) == (1, 2)
    assert dict(one.decode) == pytest.approx({1: 1000 / 9, 4: 1000 / 12})
    assert dict(one.prefill)[256] == pytest.approx(256 / 0.264)
    assert dict(two.decode)[1] == pytest.approx(2000 / 9)
    assert context.is_clear


def test_idle_it_measures_once_and_then_waits() -> None:
    context, wake = Context(), threading.Event()
    found: list[list[Curve]] = []

    def done(curves: list[Curve]) -> None:
        assert (context.threads, context.is_clear, context.is_told) == (1, True, True)
        found.append(curves)
        wake.set()

    measuring = tuner(context, done, Watch())
    measuring.rest(wake)
    ((one, two),) = found
    assert (one.threads, two.threads) == (1, 2)
    steps = context.steps
    measuring.rest(wake)
    assert context.steps == steps


def test_work_that_arrives_ends_it_after_the_step() -> None:
    context, wake = Context(), threading.Event()
    context.on_step = lambda: wake.set() if context.steps == 9 else None
    measuring = tuner(context, lambda curves: pytest.fail("was interrupted"), Watch())
    measuring.rest(wake)
    assert context.steps == 9
    assert (context.threads, context.is_clear, context.is_told) == (1, True, True)
    measuring.worked()
    wake.clear()
    threading.Timer(0.02, wake.set).start()
    measuring.rest(wake)
    assert context.steps == 9, "what was computed since is not overwritten"


def test_what_was_measured_beside_others_is_measured_again() -> None:
    context, wake = Context(), threading.Event()
    found: list[int] = []

    def done(curves: list[Curve]) -> None:
        found.append(context.steps)
        wake.set()

    measuring = tuner(context, done, Watch())
    measuring.rest(wake)
    wake.clear()
    steps = found.pop()
    measuring = tuner(context, done, Watch(*[1.0] * (steps // 2)))
    measuring.rest(wake)
    assert len(found) == 1
    assert found[0] > 2.5 * steps, "the first of the two was dropped"


def curve(threads: int, rate: float) -> Curve:
    return Curve(threads, ((256, 10 * rate),), ((1, rate), (4, rate / 2)))


@pytest.mark.parametrize(
    ("curves", "wanted"),
    [
        ([curve(1, 50.0), curve(2, 90.0), curve(4, 93.0)], 2),
        ([curve(1, 50.0), curve(2, 90.0), curve(4, 170.0)], 4),
        ([curve(1, 50.0)], 1),
    ],
)
def test_the_best_threads_are_the_fewest_that_come_close(curves: list[Curve], wanted: int) -> None:
    assert best_threads(curves) == wanted


def config(threads: int, **changes: Any) -> ChildConfig:
    values: dict[str, Any] = {
        **dict.fromkeys(("model_path", "kv_type", "chat_template"), ""),
        **dict.fromkeys(("n_gpu_layers", "context_tokens", "n_batch", "prefill_chunk", "top_k"), 0),
        **dict.fromkeys(("step_guard_ms", "temperature", "top_p", "min_p"), 0.0),
        "slots": 4,
        "debug": False,
    }
    return ChildConfig(**values | {"threads": threads} | changes)


def test_threads_are_what_was_measured_with_this_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engines.llama_cpp.tuning.device.cores", lambda: 2)
    curves = [asdict(curve(1, 50.0)), asdict(curve(2, 90.0))]
    kept = {"build": "b", "curves": curves, "measured_s": 1.0}
    assert DeviceTuning(config(0, kept=kept), "b").threads == 2
    assert DeviceTuning(config(0, kept=kept), "another").threads == 1
    assert DeviceTuning(config(0, kept=kept | {"curves": curves[:1]}), "b").threads == 1
    assert DeviceTuning(config(3, kept=kept), "b").threads == 3
    assert DeviceTuning(config(0), "b").threads == 1
