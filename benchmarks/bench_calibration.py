"""Whether the predicted 95th percentile of the time to the first token holds, on a real engine.

Gateway and edge daemon are processes of their own, the engine is llama.cpp with one thread and four slots.
Requests come as a Poisson process whose rate changes every few seconds between idle and more than the engine
can do, with prompts of unlike lengths. Every answer carries what was predicted when it was routed: nothing is
computed afterwards. The first 100 answers of each gateway count for nobody, it starts knowing nothing.

In the second phase the engine's process is stopped for two thirds of every 30 ms, as a CPU quota does it, so
that it is three times slower from then on; arrivals become three times rarer with it.

The baseline knows the node's past TTFTs only: the 95th percentile of the last 20, 50, 100, 200 or all of
them, whichever does best on these very answers.

Measuring takes about a quarter of an hour. It goes on where it was ended: the answers of each run are kept in
the folder `--keep` until all are there.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.calibration.answers import Answer, load, save
from benchmarks.calibration.figures import best_baseline, bins, coverage, pinball
from benchmarks.calibration.rig import Rig
from benchmarks.common import CannotMeasure, Row, row, run
from tidegate_cli.models import prepared_models
from tidegate_cli.stack.process import ChildFailed

WARM_UP = 100
SLOWER = 3
SLOW_FROM, SLOW_TO = 100, 1_100
QUIET_BEFORE_SLOW = 250
LOW, HIGH, EACH_BIN = 0.93, 0.97, 0.90
LESS_LOSS = 0.30
# Fewer answers than this say nothing about a bin.
ENOUGH_IN_BIN = 40


@dataclass(frozen=True, slots=True)
class Plan:
    requests: int
    run_requests: int
    seed: int
    folder: Path
    runs: int


def plan() -> Plan:
    parser = argparse.ArgumentParser(description="whether predicted p95 TTFTs hold")
    parser.add_argument("--requests", type=int, default=2_000, help="answers that count (default 2000)")
    parser.add_argument(
        "--run-requests", type=int, default=600, help="answers that count per gateway (default 600)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of arrivals and prompts (default 1)")
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("/tmp/tidegate-calibration"),
        help="folder for the answers of a measurement that goes on later",
    )
    parser.add_argument("--runs", type=int, default=99, help="make at most so many runs now (default all)")
    args = parser.parse_args()
    return Plan(args.requests, args.run_requests, args.seed, args.keep, args.runs)


async def measure() -> list[Row]:
    wanted = plan()
    try:
        models = await prepared_models(print)
    except ChildFailed as error:
        raise CannotMeasure(str(error)) from error
    wanted.folder.mkdir(parents=True, exist_ok=True)
    runs = -(-wanted.requests // wanted.run_requests)
    paths = [wanted.folder / f"steady-{wanted.seed}-{number}.jsonl" for number in range(runs)]
    slow = wanted.folder / f"slow-{wanted.seed}.jsonl"
    missing = [(n, path) for n, path in enumerate((*paths, slow)) if not path.exists()]
    for number, path in missing[: wanted.runs]:
        async with Rig(models.edge, seed=wanted.seed * 1000 + number) as rig:
            save(path, await (_slow(rig) if path == slow else rig.ask(WARM_UP + wanted.run_requests)))
    if len(missing) > wanted.runs:
        raise CannotMeasure(f"{len(missing) - wanted.runs} of {runs + 1} runs are missing: start it again")
    steady = [answer for path in paths for answer in load(path)[WARM_UP:]]
    rows = _steady_rows(steady) + _slow_rows(load(slow))
    for done in (*paths, slow):
        done.rename(done.with_suffix(".done"))
    return rows


async def _slow(rig: Rig) -> list[Answer]:
    await rig.ask(QUIET_BEFORE_SLOW)
    async with rig.slowed(SLOWER):
        return await rig.ask(SLOW_TO, rate=1.0 / SLOWER)


def _steady_rows(answers: list[Answer]) -> list[Row]:
    share = coverage(answers)
    rows = [
        row(f"p95 kept, {len(answers)} requests", share, "share", bar=LOW, sense=">="),
        row("p95 kept, and not too wide", share, "share", bar=HIGH),
    ]
    for kind, found in (("prompt tokens", bins(answers, "length")), ("requests open", bins(answers, "open"))):
        for name, members in found.items():
            bar = EACH_BIN if len(members) >= ENOUGH_IN_BIN else None
            label = f"p95 kept, {kind} {name} ({len(members)})"
            rows.append(row(label, coverage(members), "share", bar=bar, sense=">="))
    loss = pinball([(a.ttft_ms, a.p95_ms) for a in answers])
    base, window = best_baseline(answers)
    rows += [
        row("pinball loss at 0.95", loss, "ms"),
        row(f"pinball loss of the baseline ({window})", base, "ms"),
        row("loss below the baseline's", 1.0 - loss / base, "share", bar=LESS_LOSS, sense=">="),
    ]
    return rows


def _slow_rows(answers: list[Answer]) -> list[Row]:
    felt, after = answers[:SLOW_FROM], answers[SLOW_FROM:SLOW_TO]
    name = f"after a lasting {SLOWER}x slowdown, requests {SLOW_FROM + 1} to {SLOW_TO}: p95 kept"
    share = coverage(after)
    return [
        row(f"after a lasting {SLOWER}x slowdown, requests 1 to 10: p95 kept", coverage(felt[:10]), "share"),
        row(
            f"after a lasting {SLOWER}x slowdown, requests 1 to {SLOW_FROM}: p95 kept",
            coverage(felt),
            "share",
        ),
        row(name, share, "share", bar=LOW, sense=">="),
        row(f"{name}, and not too wide", share, "share", bar=HIGH),
    ]


if __name__ == "__main__":
    sys.exit(run("calibration", measure))
