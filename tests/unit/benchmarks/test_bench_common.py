"""A benchmark's verdict is its bars' and nothing else's."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.common import CannotMeasure, Row, cpu_s, own_cpu_s, percentile, publish, row, run, table


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (0.991, 100), (1.0, 100), (0.0, 1)]
)
def test_a_percentile_is_a_sample_that_was_measured(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_no_samples_hold_no_bar() -> None:
    value = percentile([], 0.99)
    assert math.isnan(value)
    assert not row("p99", value, "ms", bar=100).holds


@pytest.mark.parametrize(
    ("value", "sense", "holds"),
    [(3.0, "<=", True), (3.01, "<=", False), (2.9, ">=", False), (3.0, "==", True), (4.0, "==", False)],
)
def test_a_bar_is_judged_by_the_value_as_measured(value: float, sense: str, holds: bool) -> None:
    judged = row("x", value, "ms", bar=3, sense=sense)  # type: ignore[arg-type]
    assert judged.holds is holds
    assert judged.bar == f"{sense} 3 ms"


def test_what_is_there_for_information_has_no_bar_and_fails_nothing() -> None:
    assert row("cores", 7.0, "cores") == Row("cores", 7.0, "cores", None, True)


def test_a_missed_bar_stays_in_table_and_file_and_decides_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row("good", 1.23456, "ms", bar=3),
        row("bad", 9, "ms", bar=3),
        row("empty", math.nan, "ms", bar=3),
    ]
    assert publish("sample", rows, tmp_path) == 1
    assert capsys.readouterr().out.count("NOT HELD") == 2
    assert json.loads((tmp_path / "sample.json").read_text()) == [
        {"name": "good", "value": 1.2346, "unit": "ms", "bar": "<= 3 ms", "holds": True},
        {"name": "bad", "value": 9, "unit": "ms", "bar": "<= 3 ms", "holds": False},
        {"name": "empty", "value": None, "unit": "ms", "bar": "<= 3 ms", "holds": False},
    ]


def test_all_bars_held_is_success_and_nothing_measured_is_not(tmp_path: Path) -> None:
    assert publish("sample", [row("good", 1, "ms", bar=3), row("also", 5, "ms")], tmp_path) == 0
    assert publish("sample", [], tmp_path) == 1


def test_the_table_lines_up() -> None:
    lines = table([row("a", 1, "ms", bar=3), row("longer name", 22.5, "cores")]).splitlines()
    assert len({line.index("ms") if "ms" in line else line.index("cores") for line in lines[1:]}) == 1


def test_what_is_missing_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    async def measure() -> list[Row]:
        raise CannotMeasure("no model: run `make demo`")

    assert run("sample", measure) == 2
    assert capsys.readouterr().err == "bench-sample: no model: run `make demo`\n"


def test_a_benchmark_told_to_end_cleans_up(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    async def measure() -> list[Row]:
        try:
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
            await asyncio.sleep(30)
        finally:
            cleaned.append(True)
        return []

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run("sample", measure) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert cleaned


def test_results_say_what_else_ran_and_whether_routing_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Row] = []
    monkeypatch.setattr(common, "publish", lambda name, rows: told.extend(rows) or 0)

    async def measure() -> list[Row]:
        return [row("one", 1, "ms")]

    assert run("sample", measure) == 0
    assert [r.name for r in told] == ["one", "routing code compiled", "busy cores of others meanwhile"]
    assert told[1].value == 0.0  # tests run the sources


def test_cpu_time_counts_children_until_and_after_they_end() -> None:
    before_s = own_cpu_s()
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint('x', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        living_s = own_cpu_s() - before_s
        assert cpu_s(child.pid) >= 0.25
    time.sleep(0)
    assert living_s >= 0.25
    assert own_cpu_s() - before_s >= 0.25
    assert cpu_s(child.pid) == 0.0
