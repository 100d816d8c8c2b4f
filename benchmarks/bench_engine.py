"""Our llama.cpp engine against llama-server, both from the same source, interleaved and in pairs.

Both run as they are used, in processes of their own with the same threads, slots, context and weights; this
process asks both and takes the time of every token. A ratio is the median over rounds of ours by theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import CannotMeasure, Row, percentile, row, run
from benchmarks.engine import scenarios
from benchmarks.engine.drivers import Driver, LlamaServer, OurEngine
from benchmarks.engine.random_model import random_model
from benchmarks.engine.scenarios import Disturbed, Pairs, Streams
from benchmarks.engine.tools import llama_tools
from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.prepare import prepare
from serving.engines.llama_cpp.settings import LlamaCppSettings

STREAMS = (1, 4, 8, 16)
SHARED_TOKENS, NEW_TOKENS = 1000, 24
LONG_TOKENS, RUNNING, RUNNING_TOKENS = 2000, 4, 900
SHARE_STREAMS = 16


@dataclass(frozen=True, slots=True)
class Options:
    rounds: int
    threads: int
    models: tuple[str, ...]
    only: tuple[str, ...]
    seed: int
    programs: Path


async def model_file(name: str) -> Path:
    """A variant of the bundled model, or the random one. Raises CannotMeasure."""
    if name == "random-1.5B":
        return await asyncio.to_thread(random_model)
    return (await asyncio.to_thread(prepare, bundled_model(), [name], default_models_dir(), model=MODEL))[
        0
    ].path


class Bench:
    """One pair of engines on one model."""

    def __init__(self, options: Options, path: Path, *, slots: int, context_tokens: int) -> None:
        settings = LlamaCppSettings(
            model_path=path,
            model="bench",
            threads=options.threads,
            slots=slots,
            context_tokens=context_tokens,
            queue_limit=slots,
        )
        log = Path(tempfile.gettempdir()) / f"tidegate-bench-llama-server-{os.getpid()}.log"
        self.options = options
        self.ours = OurEngine(settings)
        self.theirs = LlamaServer(options.programs / "llama-server", settings, log)
        self.rng = random.Random(options.seed)

    async def __aenter__(self) -> Bench:
        try:
            await self.ours.start()
            await self.theirs.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.ours.stop()
        await self.theirs.stop()

    @property
    def drivers(self) -> tuple[Driver, Driver]:
        return self.ours, self.theirs


async def streams_rows(options: Options, name: str) -> list[Row]:
    figures = {count: Streams() for count in STREAMS}
    async with Bench(options, await model_file(name), slots=max(STREAMS), context_tokens=512) as bench:
        await check_words(bench.theirs)
        prompts = await scenarios.lasting_prompts(bench.ours, bench.rng, max(STREAMS))
        if len(prompts) < max(STREAMS):
            raise CannotMeasure(f"{name}: its answers end too early to be measured")
        await bench.theirs.answer(prompts[0], 8)
        for number in range(options.rounds):
            for count, into in figures.items():
                await scenarios.streams_round(bench.ours, bench.theirs, prompts[:count], number, into)
            print(f"{name}: round {number + 1} of {options.rounds}", flush=True)
        return [*decode_rows(name, figures, bench.rng), *ttft_rows(name, figures[max(STREAMS)].ttft)]


def decode_rows(name: str, figures: dict[int, Streams], rng: random.Random) -> list[Row]:
    rows = []
    for count, streams in figures.items():
        pairs = streams.decode
        low, high = pairs.interval(rng)
        label = f"{name}, {count} streams"
        rows.append(row(f"{label}: decode, ours by llama-server", pairs.ratio(), "x", bar=0.95, sense=">="))
        rows.append(row(f"{label}: 95 % interval from", low, "x"))
        rows.append(row(f"{label}: 95 % interval to", high, "x"))
        rows.append(row(f"{label}: decode, ours", statistics.median(pairs.ours), "tokens/s"))
        rows.append(row(f"{label}: decode, llama-server", statistics.median(pairs.theirs), "tokens/s"))
        rows.append(row(f"{label}: with prompts, ours by llama-server", streams.whole.ratio(), "x"))
    mean = math.exp(statistics.fmean(math.log(s.decode.ratio()) for s in figures.values()))
    rows.append(row(f"{name}: decode, geometric mean", mean, "x", bar=1.0, sense=">="))
    return rows


def ttft_rows(name: str, pairs: Pairs) -> list[Row]:
    label = f"{name}: mean TTFT of {max(STREAMS)} x {scenarios.PROMPT_TOKENS} tokens"
    return [
        row(f"{label}, ours by llama-server", pairs.ratio(), "x", bar=0.75),
        row(f"{label}, ours", statistics.median(pairs.ours), "ms"),
        row(f"{label}, llama-server", statistics.median(pairs.theirs), "ms"),
    ]


async def check_words(server: LlamaServer) -> None:
    """Prompts are counted in words: each must be one token."""
    sample = " ".join(scenarios.WORDS)
    count = await server.tokens_of(sample)
    if abs(count - len(scenarios.WORDS)) > 2:
        raise CannotMeasure(f"{len(scenarios.WORDS)} words are {count} tokens of this model")


async def prefix_rows(options: Options, name: str) -> list[Row]:
    taken: dict[str, list[tuple[float, float]]] = {}
    context = SHARED_TOKENS + 2 * NEW_TOKENS + 64
    async with Bench(options, await model_file(name), slots=4, context_tokens=context) as bench:
        for number in range(options.rounds):
            for driver in bench.drivers:
                pair = await scenarios.prefix_round(driver, bench.rng, number, SHARED_TOKENS, NEW_TOKENS)
                taken.setdefault(driver.name, []).append(pair)
    rows = []
    for driver_name, pairs in taken.items():
        label = f"{name}: {SHARED_TOKENS} shared + {NEW_TOKENS} new tokens, {driver_name}"
        bar = 0.08 if driver_name == OurEngine.name else None
        rows.append(row(f"{label}: TTFT by cold", statistics.median(w / c for c, w in pairs), "x", bar=bar))
        rows.append(row(f"{label}: TTFT", statistics.median(w for _, w in pairs), "ms"))
        rows.append(row(f"{label}: TTFT cold", statistics.median(c for c, _ in pairs), "ms"))
    return rows


async def long_prompt_rows(options: Options, name: str) -> list[Row]:
    taken: dict[str, Disturbed] = {}
    context = LONG_TOKENS + 64
    async with Bench(options, await model_file(name), slots=RUNNING + 1, context_tokens=context) as bench:
        for number in range(max(3, options.rounds // 3)):
            for driver in bench.drivers:
                into = taken.setdefault(driver.name, Disturbed())
                rng = random.Random(options.seed + number)
                await scenarios.disturbed_round(driver, rng, RUNNING, LONG_TOKENS, RUNNING_TOKENS, into)
    rows = []
    for driver_name, figures in taken.items():
        label = f"{name}: {RUNNING} answers beside a prompt of {LONG_TOKENS} tokens, {driver_name}"
        bar = 2.5 if driver_name == OurEngine.name else None
        rows.append(row(f"{label}: p99 between tokens by undisturbed", figures.ratio(), "x", bar=bar))
        rows.append(row(f"{label}: p99 undisturbed", percentile(figures.calm_ms, 0.99), "ms"))
        rows.append(row(f"{label}: longest", max(figures.longest_ms), "ms"))
        rows.append(row(f"{label}: TTFT of the prompt", statistics.median(figures.long_ttft_ms), "ms"))
    return rows


async def share_rows(options: Options, name: str) -> list[Row]:
    path = await model_file(name)
    command = [sys.executable, "-m", "benchmarks.engine.share", str(path), str(SHARE_STREAMS)]
    child = await asyncio.create_subprocess_exec(
        *command, str(options.threads), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    output, _ = await child.communicate()
    if child.returncode:
        raise CannotMeasure(f"the loop's own time could not be measured: status {child.returncode}")
    clocks = json.loads(output)
    label = f"{name}: {SHARE_STREAMS} streams"
    total_ms = clocks["total_ms"]
    return [
        row(f"{label}: Python's share of a step", clocks["own_ms"] / total_ms * 100.0, "%", bar=1.0),
        row(f"{label}: Python's time in a step", clocks["own_ms"], "ms"),
        row(f"{label}: choosing tokens", clocks["sample_ms"] / total_ms * 100.0, "%"),
        row(f"{label}: one step", total_ms, "ms"),
    ]


PARTS = {"share": share_rows, "prefix": prefix_rows, "long": long_prompt_rows, "streams": streams_rows}


def options_of(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(description="our llama.cpp engine against llama-server")
    parser.add_argument("--rounds", type=int, default=9, help="pairs per figure (default 9)")
    parser.add_argument("--quick", action="store_true", help="3 rounds, the smallest model only")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument("--models", default="Q4_0,Q8_0,random-1.5B", help="for the streams, comma-separated")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--seed", type=int, default=1, help="seed of the prompts (default 1)")
    args = parser.parse_args(arguments)
    models, rounds = tuple(args.models.split(",")), args.rounds
    if args.quick:
        models, rounds = models[:1], min(rounds, 3)
    return Options(rounds, args.threads, models, tuple(args.parts.split(",")), args.seed, llama_tools())


async def measure() -> list[Row]:
    options = await asyncio.to_thread(options_of, sys.argv[1:])
    rows: list[Row] = []
    for part, rows_of in PARTS.items():
        if part in options.only:
            for name in options.models if part == "streams" else options.models[:1]:
                rows += await rows_of(options, name)
                print(f"{part} on {name}: done", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(run("engine", measure))
