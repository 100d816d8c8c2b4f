"""The engine's child is killed, broken and stopped under load, and its sequences are cancelled at any moment.

Blows: the engine as a node runs it, every slot busy and as many requests waiting; and a real device daemon,
asked over its local API. From the blow until the next request's first token counts. It may take as long as an
engine needs to be ready (without measuring its speeds), a second, and for a stopped child the watchdog's
limit. Cancels: one stream after another is cancelled at a random moment while others run on, whose tokens are
compared with an undisturbed run, or with those of the oracle engine.

It takes about nine minutes. `--part` measures one part and leaves the rows of the others in the result file.
`--within S --keep FILE` makes the cancels of llama.cpp in pieces: it exits 2 until all are made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import RESULTS, ForeignLoad, Row, row, run
from benchmarks.engine_faults.blows import SLOTS, measure_blows
from benchmarks.engine_faults.cancels import Plan, measure_cancels
from benchmarks.engine_faults.daemon import measure_daemon
from benchmarks.engine_faults.pieces import Pieces
from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.prepare import prepare
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.engines.oracle import OracleEngine, OracleSettings

NAME = "engine_faults"
PARTS = ("blows", "daemon", "cancels", "oracle")
HANG_S = 2.0
ORACLE = OracleSettings(slots=SLOTS, prefill_tokens_per_s=20000.0, decode=((1, 250.0), (4, 200.0)))


async def measure_part(part: str, args: argparse.Namespace, settings: LlamaCppSettings) -> list[Row]:
    """Each part has random numbers of its own, so that alone it does what it does among the others."""
    rng = random.Random(f"{part} {args.seed}")
    load = ForeignLoad()
    # A few of the blows are the daemon's.
    through_daemon = args.faults // 4
    if part == "blows":
        rows = await measure_blows(settings, args.faults - through_daemon, rng)
    elif part == "daemon":
        rows = await measure_daemon(settings, through_daemon, rng)
    elif part == "cancels":
        plan = Plan("cancels", args.cancels, tokens=200, moment_s=0.06)
        pieces = Pieces(args.keep, args.within)
        # Another piece has other prompts and moments.
        rng = random.Random(f"{part} {args.seed} {pieces.seen().tries}")
        rows = await measure_cancels(LlamaCppEngine(settings), plan, rng, pieces)
    else:
        plan = Plan("oracle", args.cancels, tokens=400, moment_s=0.02, known=True)
        rows = await measure_cancels(OracleEngine(ORACLE), plan, rng)
    return [*rows, row(f"{part}: busy cores of others", load.cores(), "cores")]


def kept(path: Path, parts: Sequence[str]) -> list[Row]:
    """The rows of an earlier result file that belong to these parts."""
    if not parts or not path.exists():
        return []
    listed = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**each | {"value": math.nan if each["value"] is None else each["value"]}) for each in listed]
    return [each for each in rows if each.name.partition(":")[0] in parts]


async def measure() -> list[Row]:
    parser = argparse.ArgumentParser(description="the engine's child is struck under load, and cancelled")
    parser.add_argument(
        "--faults", type=int, default=50, help="blows in all, a quarter of them on a daemon's"
    )
    parser.add_argument("--cancels", type=int, default=1000, help="cancelled streams of each engine")
    parser.add_argument("--part", choices=PARTS, help="only this one (default all)")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds that the cancels may take")
    parser.add_argument("--keep", type=Path, help="file that keeps the cancels made until the next run")
    parser.add_argument("--seed", type=int, default=1, help="seed of moments and prompts (default 1)")
    args = parser.parse_args()
    path = (await asyncio.to_thread(prepare, bundled_model(), ["Q4_0"], default_models_dir(), model=MODEL))[
        0
    ].path
    settings = LlamaCppSettings(
        model_path=path, model=MODEL, slots=SLOTS, context_tokens=1024, hang_timeout_s=HANG_S
    )
    rows: list[Row] = []
    for part in PARTS:
        if args.part in (None, part):
            rows += await measure_part(part, args, settings)
        else:
            rows += kept(RESULTS / f"{NAME}.json", [part])
    return rows


if __name__ == "__main__":
    sys.exit(run(NAME, measure))
