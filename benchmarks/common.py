"""What the benchmarks share: rows with their bars, the table, the result file, the machine's foreign load."""

from __future__ import annotations

import asyncio
import json
import math
import operator
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tidegate.routing import policy

RESULTS = Path(__file__).resolve().parent / "results"
_COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


class CannotMeasure(Exception):
    """Something that the benchmark needs is missing; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure. A row without a bar (None) is there for information and always holds."""

    name: str
    value: float
    unit: str
    bar: str | None
    holds: bool


def row(
    name: str,
    value: float,
    unit: str,
    *,
    bar: float | None = None,
    sense: Literal["<=", ">=", "=="] = "<=",
) -> Row:
    """A figure, judged as measured; only what is shown is rounded. NaN holds no bar."""
    holds = True if bar is None else bool(_COMPARE[sense](value, bar))
    shown = None if bar is None else f"{sense} {bar:g} {unit}".strip()
    return Row(name, value, unit, shown, holds)


def compiled() -> bool:
    """Whether the routing code that is measured is machine code, as in the gateway's image."""
    return not str(policy.__file__).endswith(".py")


def compiled_row() -> Row:
    return row("routing code compiled", float(compiled()), "1 = yes")


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all do not exceed; NaN for none."""
    if not samples:
        return math.nan
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def table(rows: Sequence[Row]) -> str:
    """The rows as text; a bar that does not hold stands out."""
    cells = [("figure", "value", "unit", "bar", "holds")]
    for r in rows:
        verdict = "-" if r.bar is None else "yes" if r.holds else "NOT HELD"
        cells.append((r.name, f"{r.value:.4g}", r.unit, r.bar or "-", verdict))
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column == 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def publish(name: str, rows: Sequence[Row], results: Path = RESULTS) -> int:
    """Prints the table and writes results/NAME.json; the exit status: 0 only if every bar holds."""
    print(table(rows), flush=True)
    results.mkdir(parents=True, exist_ok=True)
    listed = [asdict(r) | {"value": round(r.value, 4) if math.isfinite(r.value) else None} for r in rows]
    (results / f"{name}.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    return 0 if rows and all(r.holds for r in rows) else 1


def run(name: str, measure: Callable[[], Awaitable[list[Row]]]) -> int:
    """Measures and publishes; 2 with one line when something needed is missing."""
    try:
        rows = asyncio.run(_measured(measure))
    except CannotMeasure as error:
        print(f"bench-{name}: {error}", file=sys.stderr)
        return 2
    except asyncio.CancelledError:
        print(f"bench-{name}: was told to end", file=sys.stderr)
        return 2
    return publish(name, rows)


async def _measured(measure: Callable[[], Awaitable[list[Row]]]) -> list[Row]:
    asked = asyncio.current_task()
    if asked is not None:
        # So that a benchmark that is told to end takes its children with it.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.cancel)
    load = ForeignLoad()
    rows = await measure()
    return [*rows, compiled_row(), row("busy cores of others meanwhile", load.cores(), "cores")]


class ForeignLoad:
    """How busy everything that is not this process and its children kept the machine since it was made."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._busy_s, self._own_s = busy_s(), own_cpu_s()

    def cores(self) -> float:
        all_s, own_s = busy_s() - self._busy_s, own_cpu_s() - self._own_s
        return max(0.0, (all_s - own_s) / (time.monotonic() - self._began_s))


def cpu_s(pid: int) -> float:
    """CPU seconds of a living process and its reaped children; 0 for one that is gone."""
    fields = _stat(pid)
    return 0.0 if fields is None else sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def own_cpu_s() -> float:
    """CPU seconds of this process and all its descendants."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))) is not None:
            parents[int(entry)] = int(fields[1])
    ours = {os.getpid()}
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        ours |= more
        grown = bool(more)
    return sum(cpu_s(pid) for pid in ours)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on (proc(5), field 3)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def busy_s() -> float:
    """CPU seconds the whole machine was not idle."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
