"""Our llama.cpp engine against llama-server, both from the same source, interleaved and in pairs.

Both run as they are used, in processes of their own with the same threads, slots, context and weights; this
process asks both and takes the time of every token. A ratio is the median over rounds of ours by theirs.

All rounds take more than an hour. They are kept in the file `--keep`: what was ended, or told by `--minutes`
to end, goes on where it was; the table is made when no round is missing. `--fresh` forgets them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import CannotMeasure, Row, run
from benchmarks.engine.kept import Kept
from benchmarks.engine.pair import Pair, trace
from benchmarks.engine.parts import PARTS, Part
from benchmarks.engine.random_model import random_model
from benchmarks.engine.tools import llama_tools
from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.prepare import prepare


@dataclass(frozen=True, slots=True)
class Options:
    rounds: int
    threads: int
    models: tuple[str, ...]
    only: tuple[str, ...]
    seed: int
    programs: Path
    keep: Path
    give_up_s: float
    gpu_layers: int = 0


def shown(model: str) -> str:
    """The name of a model in the table."""
    return Path(model).name.removesuffix(".gguf")


async def model_file(name: str) -> Path:
    """A variant of the bundled model, the random one, or a file. Raises CannotMeasure."""
    if name.endswith(".gguf"):
        return Path(name)
    if name == "random-1.5B":
        return await asyncio.to_thread(random_model)
    return (await asyncio.to_thread(prepare, bundled_model(), [name], default_models_dir(), model=MODEL))[
        0
    ].path


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="our llama.cpp engine against llama-server")
    parser.add_argument("--rounds", type=int, default=9, help="pairs per figure (default 9)")
    parser.add_argument("--quick", action="store_true", help="3 rounds, the smallest model only, not kept")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument(
        "--models", default="Q4_0,Q8_0,random-1.5B", help="for the streams, or GGUF files, comma-separated"
    )
    parser.add_argument(
        "--gpu-layers",
        type=int,
        default=0,
        help="layers on a GPU, -1 for all; llama-server is then built with $CMAKE_ARGS, results/gpu.json",
    )
    parser.add_argument("--programs", type=Path, help="folder of a llama-server that is built already")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--seed", type=int, default=1, help="seed of the prompts (default 1)")
    keep = Path("/tmp/tidegate-engine/rounds.jsonl")
    parser.add_argument(
        "--keep", type=Path, default=keep, help="file of measured rounds (default %(default)s)"
    )
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no round later than this")
    return parser


def options_of(args: argparse.Namespace) -> Options:
    """Raises CannotMeasure."""
    models, rounds, kept = tuple(args.models.split(",")), args.rounds, args.keep
    if missing := [name for name in models if name.endswith(".gguf") and not Path(name).is_file()]:
        raise CannotMeasure(f"there is no file {missing[0]}")
    if args.gpu_layers:
        kept = kept.with_name(f"gpu-{kept.name}")
    if args.quick:
        models, rounds, kept = models[:1], min(rounds, 3), kept.with_name(f"quick-{kept.name}")
    if args.quick or args.fresh:
        kept.unlink(missing_ok=True)
    if "hits" in args.parts:
        trace()
    give_up_s = time.monotonic() + args.minutes * 60.0
    only = tuple(args.parts.split(","))
    programs = args.programs or llama_tools()
    return Options(rounds, args.threads, models, only, args.seed, programs, kept, give_up_s, args.gpu_layers)


class Measurement:
    """The parts asked for, on their models, as far as their rounds are not kept yet."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._kept = Kept(options.keep)

    def wanted(self) -> list[tuple[str, Part, str]]:
        """(name, part, model) of all."""
        models, only = self._options.models, self._options.only
        chosen = [(name, part) for name, part in PARTS.items() if name in only]
        return [
            (name, part, model)
            for name, part in chosen
            for model in (models if part.every_model else models[:1])
        ]

    def missing(self, name: str, part: Part, model: str) -> list[tuple[int, str]]:
        """(number, unit) of the rounds that are not there."""
        return [
            (number, unit)
            for number in range(part.rounds(self._options.rounds))
            for unit in part.units
            if len(self._kept.rounds(of(name, model, unit))) <= number
        ]

    async def go_on(self, name: str, part: Part, model: str) -> None:
        """Plays what is missing, while there is time."""
        missing, options = self.missing(name, part, model), self._options
        if not missing or time.monotonic() > options.give_up_s:
            return
        pair = Pair(
            shown(model),
            await model_file(model),
            options.programs,
            self._kept,
            slots=part.slots,
            context_tokens=part.context_tokens,
            threads=options.threads,
            seed=options.seed,
            parks=part.parks,
            flash=part.flash,
            gpu_layers=options.gpu_layers,
        )
        async with pair:
            for number, unit in missing:
                if time.monotonic() > options.give_up_s:
                    return
                self._kept.add(of(name, model, unit), await part.play(pair, unit, number))
                print(f"{of(name, model, unit)}: round {number + 1}", flush=True)

    def rows(self) -> list[Row]:
        """Raises CannotMeasure while rounds are missing."""
        wanted = self.wanted()
        left = {f"{name} {model}": len(self.missing(name, part, model)) for name, part, model in wanted}
        if any(left.values()):
            listed = ", ".join(f"{of}: {count}" for of, count in left.items() if count)
            raise CannotMeasure(f"rounds are missing ({listed}): start it again")
        rng = random.Random(self._options.seed)
        rows: list[Row] = []
        for name, part, model in wanted:
            rounds = {unit: self._kept.rounds(of(name, model, unit)) for unit in part.units}
            rows += part.rows(shown(model), rounds, rng)
        return rows


def of(part: str, model: str, unit: str) -> str:
    """What a kept round is of."""
    return f"{part} {model} {unit}".rstrip()


async def measure(args: argparse.Namespace) -> list[Row]:
    measurement = Measurement(await asyncio.to_thread(options_of, args))
    for name, part, model in measurement.wanted():
        await measurement.go_on(name, part, model)
    return measurement.rows()


if __name__ == "__main__":
    arguments = parser().parse_args()
    sys.exit(run("gpu" if arguments.gpu_layers else "engine", lambda: measure(arguments)))
