"""What is read of the processor, from pretended files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from serving.engines.llama_cpp.meter import SpeedMeter
from serving.engines.llama_cpp.tuning.cpu import CpuWatch, HeatWatch, busy_s, quota
from serving.engines.llama_cpp.tuning.keeper import ThreadKeeper
from serving.engines.llama_cpp.tuning.policy import CpuView

CORES = {0, 1}


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def stat(root: Path, *busy_ticks: int) -> None:
    lines = [f"cpu{core} {ticks} 0 0 5000 7 0 0 0 0 0" for core, ticks in enumerate(busy_ticks)]
    write(root, "proc/stat", "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *lines, "intr 5"]))


class Clock:
    def __init__(self) -> None:
        self.now_s = self.own_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def own(self) -> float:
        return self.own_s


def test_what_others_use_is_what_is_busy_without_our_own(tmp_path: Path) -> None:
    clock = Clock()
    stat(tmp_path, 0, 0)
    watch = CpuWatch(tmp_path, clock=clock, own_cpu_s=clock.own, allowed=CORES)
    assert watch.view.foreign_cores is None
    clock.now_s, clock.own_s = 1.0, 1.2
    stat(tmp_path, 100, 80)
    view = watch.after_step(2, 1.0)
    assert view.cores == 2
    assert view.foreign_cores == pytest.approx(0.6)
    assert view.own_cores == pytest.approx(1.2)
    assert view.free_cores(2) == pytest.approx(1.4)
    assert view.own_share == pytest.approx(0.6)
    stat(tmp_path, 999, 999)
    clock.now_s += 0.1
    assert watch.after_step(2, 0.1) is view, "a fresh view is not read again"


def test_who_shares_all_cores_with_spinning_threads_wants_more_than_it_gets() -> None:
    """Three others beside eight threads on eight cores run 8/11 of the time each."""
    view = CpuView(8, foreign_cores=24 / 11, own_cores=64 / 11)
    assert view.free_cores(8) == pytest.approx(5.0)
    assert CpuView(8, 2.5, 3.0, 1.0).free_cores(1) == 2.5, "a quota is never exceeded"


def test_work_that_has_just_ended_does_not_count(tmp_path: Path) -> None:
    clock = Clock()
    stat(tmp_path, 0, 0)
    watch = CpuWatch(tmp_path, clock=clock, own_cpu_s=clock.own, allowed=CORES)
    clock.now_s = 1.0
    stat(tmp_path, 100, 60)
    assert watch.look().foreign_cores == pytest.approx(1.6)
    with (tmp_path / "proc/stat").open("a") as file:
        file.write("\nprocs_running 1\n")
    assert watch.look().foreign_cores == 0.0
    (tmp_path / "proc/stat").write_text("procs_running 4\n")
    assert watch.look().foreign_cores == pytest.approx(1.6)


def test_only_the_cores_that_may_be_used_count(tmp_path: Path) -> None:
    stat(tmp_path, 100, 300, 700)
    assert busy_s(tmp_path, {0, 2}) == 8.0
    assert busy_s(tmp_path / "none", {0}) is None


def test_without_files_there_is_still_the_own_share(tmp_path: Path) -> None:
    clock = Clock()
    watch = CpuWatch(tmp_path, clock=clock, own_cpu_s=clock.own, allowed=CORES)
    clock.now_s, clock.own_s = 0.5, 0.9
    view = watch.after_step(2, 0.5)
    assert view.foreign_cores is None
    assert view.own_share == pytest.approx(0.9)
    assert not view.hot


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/gone", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/x",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            1.0,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
        ),
        ({}, math.inf),
    ],
)
def test_the_quota_is_the_tightest_of_the_control_groups(
    tmp_path: Path, files: dict[str, str], wanted: float
) -> None:
    for path, text in files.items():
        write(tmp_path, path, text)
    assert quota(tmp_path) == wanted


def test_heat_is_seen_in_counters_that_rise(tmp_path: Path) -> None:
    for core in (0, 1):
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count", "5\n")
    watch = HeatWatch(tmp_path, CORES)
    assert not watch.is_throttled()
    write(tmp_path, "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "6\n")
    assert watch.is_throttled()
    assert not watch.is_throttled()


def test_heat_is_seen_where_cooling_lowers_the_clock(tmp_path: Path) -> None:
    limit = "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq"
    write(tmp_path, limit, "1800000\n")
    watch = HeatWatch(tmp_path, CORES)
    assert not watch.is_throttled()
    write(tmp_path, limit, "1400000\n")
    assert watch.is_throttled()
    write(tmp_path, limit, "1800000\n")
    assert not watch.is_throttled()
    assert not HeatWatch(tmp_path / "none", CORES).is_throttled()


def test_the_keeper_sets_threads_and_tells_of_lasting_changes_once(tmp_path: Path) -> None:
    clock = Clock()
    stat(tmp_path, 0, 0)
    watch = CpuWatch(tmp_path, clock=clock, own_cpu_s=clock.own, allowed=CORES)
    applied: list[int] = []
    meter = SpeedMeter(100.0, {1: 10.0})
    keeper = ThreadKeeper(2, meter, applied.append, watch, clock)
    ticks = 0.0
    for _ in range(60):
        threads = applied[-1] if applied else 2
        step_s = 0.03 if threads == 2 else 0.018
        clock.now_s += step_s
        clock.own_s += step_s * threads * (0.7 if threads == 2 else 1.0)
        ticks += step_s * 100.0
        stat(tmp_path, int(ticks), int(ticks))
        keeper.after_step(1, 0, step_s * 1000.0)
    assert applied == [1]
    assert keeper.take_change() == (1, "steps are slower than they were")
    assert keeper.take_change() is None
