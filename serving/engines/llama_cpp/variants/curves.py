"""Speed curves of one model on one device: measured, kept, shown. The daemon may read what was kept.

FOLDER/DIGEST.json holds one model's curves; FOLDER is the node's own, so that it means this device. They
count as long as processor, cores and the engine's build are the same.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving.engines.llama_cpp.catalog import file_digest
from serving.engines.llama_cpp.identity import hardware_class
from serving.engines.llama_cpp.native_task import Progress, run_task
from serving.engines.llama_cpp.variants.curve import Curve, cores

_MODULE = "serving.engines.llama_cpp.variants.child"
# In the node's state folder.
FOLDER = "bench"
_BAR_CHARACTERS = 30


@dataclass(frozen=True, slots=True)
class Bench:
    """`hardware` is as hardware() says; `measured_on` a date like 2026-01-31, `measured_s` Unix time."""

    model: str
    digest: str
    hardware: str
    measured_on: str
    curves: tuple[Curve, ...]
    build: str = ""
    measured_s: float = 0.0


def hardware() -> str:
    """What curves are measured on."""
    return f"{hardware_class(1).rpartition('/')[0]}, {cores()} cores"


def measure_curves(
    path: Path,
    *,
    threads: Sequence[int],
    sizes: Sequence[int],
    now_s: float,
    progress: Progress,
    gpu_layers: int = 0,
) -> Bench:
    """Every size at every number of threads. `now_s` is Unix time. Blocks. Raises EngineUnavailable."""
    task = {"task": "sweep", "path": str(path), "threads": list(threads), "sizes": list(sizes)}
    found = run_task(_MODULE, task | {"gpu_layers": gpu_layers}, f"measuring {path.name}", progress)
    return bench_of(path, file_digest(path), found, now_s)


def bench_of(path: Path, digest: str, found: Any, now_s: float) -> Bench:
    """From what a child measured: {"build", "curves"}. Raises KeyError, TypeError or ValueError."""
    today = datetime.date.fromtimestamp(now_s).isoformat()
    measured = tuple(Curve.parse(each) for each in found["curves"])
    device = ", ".join((hardware(), *map(str, found.get("gpus", ()))))
    return Bench(path.name, digest, device, today, measured, str(found["build"]), now_s)


def save(bench: Bench, folder: Path) -> Path:
    """Atomically; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _file(folder, bench.digest)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(bench), indent=1) + "\n")
    temporary.replace(path)
    return path


def load(folder: Path, digest: str) -> Bench | None:
    """What was kept for the model; None when nothing was, or it is damaged."""
    try:
        data = json.loads(_file(folder, digest).read_bytes())
        curves = tuple(Curve.parse(each) for each in data["curves"])
        about = (data["model"], data["digest"], data["hardware"], data["measured_on"])
        # Kept by versions before 0.2 without these two: they then count nowhere, and are only shown.
        return Bench(*about, curves, str(data.get("build", "")), float(data.get("measured_s", 0.0)))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _file(folder: Path, digest: str) -> Path:
    return folder / f"{digest.removeprefix('sha256:')[:32]}.json"


def fastest_threads(bench: Bench, sequences: int) -> int:
    """The number of threads with the best decode rate at the measured size nearest to `sequences`."""

    def rate(curve: Curve) -> float:
        return min(curve.decode, key=lambda point: (abs(point[0] - sequences), point[0]))[1]

    return max(bench.curves, key=rate).threads


def lines(bench: Bench) -> list[str]:
    """The curves as tables with bars; decode is of all sequences together."""
    shown = [f"{bench.model} on {bench.hardware}, {bench.measured_on}"]
    for curve in bench.curves:
        points = [(f"prefill, steps of {size}", rate) for size, rate in curve.prefill]
        points += [(f"decode, {size} at once", size * rate) for size, rate in curve.decode]
        longest = max(rate for _, rate in points)
        shown += ["", f"{curve.threads} thread{'s' if curve.threads > 1 else ''}, tokens/s"]
        for name, rate in points:
            bar = "#" * max(1, round(_BAR_CHARACTERS * rate / longest))
            shown.append(f"  {name:<22}{rate:9.1f}  {bar}")
    return shown
