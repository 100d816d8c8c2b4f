"""The policy on a pretended device, on virtual time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from serving.engines.llama_cpp.meter import SpeedMeter
from serving.engines.llama_cpp.tuning.policy import CpuView, Step, ThreadPolicy

ONE_THREAD_MS = 20.0


@dataclass
class Device:
    """`cores` of which others use `taken`; `sees` is what it tells of that. `yields`: others give way."""

    cores: int = 2
    taken: float = 0.0
    sees: str = "all"
    yields: bool = False
    hot: bool = False
    now_s: float = 0.0

    def crowded(self, threads: int) -> bool:
        return not self.yields and threads > self.cores - self.taken + 0.1

    def step_ms(self, threads: int) -> float:
        """Threads on shared cores are slower than one."""
        spread = ONE_THREAD_MS / threads
        if self.crowded(threads):
            return ONE_THREAD_MS * 1.7
        return spread * 2.5 if self.hot and threads > 1 else spread

    def best_ms(self) -> float:
        return min(self.step_ms(threads) for threads in range(1, self.cores + 1))

    def view(self, threads: int) -> CpuView:
        got = min(1.0, self.cores / (threads + self.taken))
        share = 1.0 if self.yields else got
        return CpuView(
            cores=self.cores,
            foreign_cores=self.taken * got if self.sees == "all" else None,
            own_cores=threads * share,
            own_share=share if self.sees in ("all", "share") else None,
            hot=self.hot,
        )


class Run:
    """A device under a policy; keeps what every step took and with how many threads."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.meter = SpeedMeter(1000.0, {1: ONE_THREAD_MS / device.cores})
        self.policy = ThreadPolicy(device.cores, self.expected_ms)
        self.threads: list[int] = []

    def expected_ms(self, decoded: int, prefilled: int) -> float:
        return self.meter.expected_step_ms(decoded) + prefilled * 1000.0 / self.meter.prefill_tokens_per_s

    def run(self, seconds: float) -> float:
        """The speed reached, by the best fixed setting's."""
        device, began_s = self.device, self.device.now_s
        done = 0.0
        while device.now_s < began_s + seconds:
            threads = self.policy.threads
            step_ms = device.step_ms(threads)
            device.now_s += step_ms / 1000.0
            self.meter.observe(decoded=1, prefilled=0, step_ms=step_ms)
            self.threads.append(threads)
            done += device.best_ms()
            self.policy.step(Step(1, 0, step_ms, device.now_s), device.view(threads))
        return done / 1000.0 / (device.now_s - began_s)

    @property
    def changes(self) -> int:
        return sum(a != b for a, b in zip(self.threads, self.threads[1:], strict=False))


@pytest.mark.parametrize("cores", [2, 4, 8])
@pytest.mark.parametrize("sees", ["all", "share", "nothing"])
def test_undisturbed_it_keeps_all_threads(cores: int, sees: str) -> None:
    run = Run(Device(cores, sees=sees))
    assert run.run(60.0) == pytest.approx(1.0, abs=0.02)
    assert set(run.threads) == {cores}


@pytest.mark.parametrize("sees", ["all", "share", "nothing"])
def test_when_a_core_is_taken_it_soon_computes_with_the_other_and_later_with_both(sees: str) -> None:
    run = Run(Device(sees=sees))
    run.run(5.0)
    run.device.taken = 1.0
    run.run(0.5)
    assert run.run(30.0) > 0.95
    assert run.policy.settled == 1
    run.device.taken = 0.0
    run.run(2.0 if sees == "all" else 60.0)
    assert run.policy.settled == 2
    assert run.run(10.0) > 0.97


def test_of_many_cores_it_gives_up_those_that_are_taken() -> None:
    run = Run(Device(8))
    run.device.taken = 3.0
    run.run(3.0)
    assert run.policy.settled == 5
    assert "others use" in run.policy.reason
    assert run.run(30.0) > 0.95


def test_others_that_give_way_cost_it_nothing() -> None:
    run = Run(Device(taken=1.0, yields=True))
    assert run.run(120.0) > 0.97
    assert run.policy.settled == 2


def test_a_load_that_comes_and_goes_does_not_make_it_alternate_without_end() -> None:
    run = Run(Device())
    for number in range(200):
        run.device.taken = float(number % 2)
        run.run(0.3)
    # 60 s: a trial that is taken back changes twice.
    assert run.changes < 140


@pytest.mark.parametrize("slowness", [20.0, 200.0])
def test_steps_that_take_seconds_are_evidence_one_by_one(slowness: float) -> None:
    """Both threads may come to lie on one core, each waiting for the other's time to be over."""

    class Stuck(Device):
        def step_ms(self, threads: int) -> float:
            return ONE_THREAD_MS * slowness if self.crowded(threads) else super().step_ms(threads)

    run = Run(Stuck())
    run.run(2.0)
    run.device.taken = 1.0
    run.threads.clear()
    run.run(20.0)
    assert run.policy.settled == 1
    assert run.threads.count(2) <= 7
    assert run.run(60.0) > 0.9


def test_work_begins_with_the_threads_that_fit() -> None:
    run = Run(Device(taken=1.0))
    assert run.policy.begin(10.0, CpuView(2, foreign_cores=1.0)) == 1
    assert "1.0 cores" in run.policy.reason
    run.device.now_s = 10.0
    assert run.run(15.0) > 0.99
    assert set(run.threads) == {1}, "what others use is believed for a while"
    assert run.policy.begin(30.0, CpuView(2, foreign_cores=0.1)) == 2


def test_a_beginning_with_too_few_threads_is_found_out() -> None:
    run = Run(Device(taken=1.0, yields=True))
    assert run.policy.begin(10.0, CpuView(2, foreign_cores=1.0)) == 1
    run.device.now_s = 10.0
    run.run(25.0)
    assert run.policy.settled == 2


def test_work_does_not_begin_with_what_a_trial_has_refuted() -> None:
    run = Run(Device(taken=1.0, yields=True))
    run.run(30.0)
    assert run.policy.begin(run.device.now_s + 0.5, CpuView(2, foreign_cores=1.0)) == 2


def test_a_trial_that_work_ends_in_is_taken_back() -> None:
    run = Run(Device())
    run.run(1.0)
    run.device.taken = 1.0
    while run.policy.threads == 2:
        run.run(0.01)
    assert run.policy.settled == 2
    run.device.now_s += 30.0
    run.device.taken = 0.0
    run.run(0.01)
    assert run.policy.threads == 2


def test_heat_is_met_with_fewer_threads_where_that_helps_and_not_for_ever() -> None:
    run = Run(Device(hot=True))
    assert run.run(20.0) > 0.95
    assert run.policy.settled == 1
    assert "heat" in run.policy.reason
    run.device.hot = False
    run.run(40.0)
    assert run.policy.settled == 2


def test_steps_are_compared_with_steps_of_their_kind() -> None:
    """A prompt's steps are ten times as long: they must not speak against the threads of a trial."""
    device = Device(taken=1.0)
    policy = ThreadPolicy(2, lambda decoded, prefilled: 1.0)
    for number in range(40):
        threads = policy.threads
        prefilled = 100 if policy.settled != threads and number % 2 else 0
        step_ms = device.step_ms(threads) * (10.0 if prefilled else 1.0)
        device.now_s += step_ms / 1000.0
        policy.step(Step(1, prefilled, step_ms, device.now_s), device.view(threads))
    assert policy.settled == 1
