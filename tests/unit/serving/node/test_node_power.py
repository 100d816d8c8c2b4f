"""What a node tells of its electricity, from files as Linux has them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.node.power import ENOUGH, PowerOptions, PowerWatch
from serving.node.power_files import Energy, Supplies, read_energy, read_supplies
from tidegate.routing.domain import Power


def put(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def laptop(folder: Path, *, plugged: int, status: str, capacity: int = 63, **battery: object) -> None:
    put(folder / "AC", type="Mains", online=plugged)
    put(folder / "BAT0", type="Battery", status=status, capacity=capacity, present=1, **battery)
    # A mouse: its battery is not this device's.
    put(folder / "hidpp_battery_0", type="Battery", scope="Device", status="Discharging", capacity=5)


def test_a_laptop_on_battery_and_on_mains(tmp_path: Path) -> None:
    laptop(tmp_path, plugged=0, status="Discharging", power_now=7_500_000)
    assert read_supplies(tmp_path) == Supplies(True, 0.63, 7.5)
    laptop(tmp_path, plugged=1, status="Charging", power_now=30_000_000)
    assert read_supplies(tmp_path) == Supplies(False, 0.63, None)


def test_two_batteries_count_by_size_and_current_times_voltage_is_power(tmp_path: Path) -> None:
    put(tmp_path / "BAT0", type="Battery", status="Discharging", capacity=100, energy_full=30_000_000,
        current_now=500_000, voltage_now=12_000_000)  # fmt: skip
    put(tmp_path / "BAT1", type="Battery", status="Not charging", capacity=20, energy_full=10_000_000)
    assert read_supplies(tmp_path) == Supplies(True, pytest.approx(0.8), pytest.approx(6.0))


@pytest.mark.parametrize("capacity", [None, "", "lots", "nan", "1e999"])
def test_what_is_missing_or_nonsense_is_unknown(tmp_path: Path, capacity: str | None) -> None:
    put(tmp_path / "nothing")
    put(tmp_path / "BAT0", type="Battery", **({} if capacity is None else {"capacity": capacity}))
    put(tmp_path / "zone", name="package-0", energy_uj=capacity, max_energy_range_uj="nan")
    assert read_supplies(tmp_path) == Supplies()
    assert read_energy(tmp_path) == Energy()
    assert read_supplies(tmp_path / "nowhere") == Supplies()
    assert read_energy(tmp_path / "nowhere") == Energy()


@pytest.mark.parametrize("size", ["-1", "-0.5", "0", "1e308", "-1e308", "nan", "1e10"])
def test_a_battery_that_says_nonsense_of_its_size_hardly_counts(tmp_path: Path, size: str) -> None:
    put(tmp_path / "BAT0", type="Battery", capacity=50, energy_full=size, status="Discharging",
        current_now="1e308", voltage_now="-1e308", power_now="1e308")  # fmt: skip
    assert read_supplies(tmp_path) == Supplies(True, 0.5, None)
    put(tmp_path / "BAT1", type="Battery", capacity=100, energy_full=30_000_000)
    assert read_supplies(tmp_path).battery_share == pytest.approx(1.0, abs=1e-6)
    put(tmp_path / "BAT1", energy_full=size)
    assert read_supplies(tmp_path).battery_share == pytest.approx(0.75)


def rapl(folder: Path, microjoules: int, *, psys: int | None = None) -> None:
    zone = {"name": "package-0", "energy_uj": microjoules, "max_energy_range_uj": 10_000_000}
    put(folder / "intel-rapl:0", **zone)
    put(folder / "intel-rapl:0:0", name="core", energy_uj=1, max_energy_range_uj=10)
    put(folder / "intel-rapl-mmio:0", **zone)
    if psys is not None:
        put(folder / "intel-rapl:1", name="psys", energy_uj=psys, max_energy_range_uj=10_000_000)


def test_energy_counts_each_package_once_and_over_its_wrap(tmp_path: Path) -> None:
    rapl(tmp_path, 9_000_000)
    before = read_energy(tmp_path)
    rapl(tmp_path, 1_000_000)
    assert read_energy(tmp_path).joules_since(before) == pytest.approx(2.0)
    rapl(tmp_path, 2_000_000, psys=5)
    after = read_energy(tmp_path)
    assert [name for name, *_ in after.zones] == ["psys"]
    assert after.joules_since(before) is None


class Bench:
    """A device whose work and seconds a test decides."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.folder, self.joules, self.now_s, self.busy = folder, 0.0, 0.0, False
        rapl(folder, 0)
        self.watch = PowerWatch(
            PowerOptions(supplies=folder / "none", powercap=folder, **options),  # type: ignore[arg-type]
            lambda: self.busy,
            lambda: self.now_s,
        )

    def look(self, watts: float, *, busy: bool, times: int = 1) -> Power | None:
        for _ in range(times):
            self.busy = busy
            self.now_s += 5.0
            self.joules = (self.joules + watts * 5.0) % 10.0
            rapl(self.folder, round(self.joules * 1e6))
            self.watch.look()
        return self.watch.now()


def test_what_work_draws_is_known_once_both_idle_and_busy_were_seen(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.watch.now() is None
    power = bench.look(0.5, busy=False, times=ENOUGH + 2)
    assert power is not None
    assert (power.draw_w, power.work_w) == (pytest.approx(0.5), None)
    # The look at which work began saw both, and belongs to neither.
    bench.look(1.0, busy=True)
    power = bench.look(1.7, busy=True, times=ENOUGH)
    assert power is not None
    assert power.work_w == pytest.approx(1.2)
    # What it draws changes with time: the mean follows.
    power = bench.look(0.9, busy=True, times=20)
    assert power is not None
    assert power.work_w == pytest.approx(0.4, abs=0.02)


def test_the_operators_word_needs_no_file(tmp_path: Path) -> None:
    bench = Bench(tmp_path, metered=True, work_w=12.0)
    assert bench.watch.now() == Power(metered=True, work_w=12.0)
    power = bench.look(1.0, busy=False, times=2)
    assert power is not None
    assert (power.work_w, power.metered) == (12.0, True)


@pytest.mark.parametrize("joules", ["1e308", "-1e308", "1e19"])
def test_a_counter_that_jumps_anywhere_is_no_draw(tmp_path: Path, joules: str) -> None:
    bench = Bench(tmp_path)
    bench.look(0.5, busy=False, times=2)
    for zone in ("intel-rapl:0", "intel-rapl-mmio:0"):
        put(tmp_path / zone, energy_uj=joules)
    bench.now_s += 5.0
    bench.watch.look()
    power = bench.watch.now()
    assert power is None or power.draw_w is None


@pytest.mark.looptime
async def test_a_look_that_fails_is_told_once_and_does_not_end_the_watch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, metered=True)
    looks = []

    def broken() -> object:
        looks.append(1)
        if len(looks) < 4:
            raise ZeroDivisionError
        return Supplies(True, 0.5), Energy(), 0.0

    monkeypatch.setattr(bench.watch, "_read", broken)
    watching = asyncio.create_task(bench.watch.run())
    async with asyncio.timeout(60.0):
        while len(looks) < 5:
            await asyncio.sleep(1.0)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert len([r for r in caplog.records if r.exc_info]) == 1
    power = bench.watch.now()
    assert power is not None
    assert power.battery_share == 0.5
