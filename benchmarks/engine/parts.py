"""What bench_engine measures: how one round of each part is played, and the rows that its rounds come to."""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.common import CannotMeasure, Row, percentile, row
from benchmarks.engine import scenarios
from benchmarks.engine.drivers import LlamaServer, OurEngine
from benchmarks.engine.kept import Figures
from benchmarks.engine.pair import Pair, trace
from benchmarks.engine.replay import most_hits, replay
from benchmarks.engine.scenarios import Disturbed, Pairs, Streams

STREAMS = (1, 4, 8, 16)
SHARED_TOKENS, NEW_TOKENS = 1000, 24
LONG_TOKENS, RUNNING, RUNNING_TOKENS = 2000, 4, 900
SHARE_STREAMS = 16
HIT_SLOTS, HIT_CONTEXT = 4, 2048

Rounds = Mapping[str, Sequence[Figures]]


@dataclass(frozen=True, slots=True)
class Part:
    """`units` are measured in turn, each as often as `rounds` makes of the rounds asked for.

    `slots` 0 needs no running engines; for `parks` and `flash` see Pair.
    """

    play: Callable[[Pair, str, int], Awaitable[Figures]]
    rows: Callable[[str, Rounds, random.Random], list[Row]]
    slots: int
    context_tokens: int
    units: tuple[str, ...] = ("",)
    rounds: Callable[[int], int] = int
    every_model: bool = False
    parks: bool = False
    flash: str = ""


async def play_share(pair: Pair, _unit: str, _number: int) -> Figures:
    command = [sys.executable, "-m", "benchmarks.engine.share", str(pair.path), str(SHARE_STREAMS)]
    child = await asyncio.create_subprocess_exec(
        *command,
        str(pair.threads),
        str(pair.gpu_layers),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    output, _ = await child.communicate()
    if child.returncode:
        raise CannotMeasure(f"the loop's own time could not be measured: status {child.returncode}")
    clocks: Figures = json.loads(output)
    return clocks


def share_rows(name: str, rounds: Rounds, _rng: random.Random) -> list[Row]:
    def median(figure: str) -> float:
        return float(statistics.median(one[figure] for one in rounds[""]))

    label = f"{name}: {SHARE_STREAMS} streams"
    total_ms = median("total_ms")
    return [
        row(f"{label}: Python's share of a step", median("own_ms") / total_ms * 100.0, "%", bar=1.0),
        row(f"{label}: Python's time in a step", median("own_ms"), "ms"),
        row(f"{label}: choosing tokens", median("sample_ms") / total_ms * 100.0, "%"),
        row(f"{label}: one step", total_ms, "ms"),
    ]


async def play_prefix(pair: Pair, _unit: str, number: int) -> Figures:
    rng = pair.rng_of(number)
    return {
        driver.name: await scenarios.prefix_round(driver, rng, number, SHARED_TOKENS, NEW_TOKENS)
        for driver in pair.in_turn(number)
    }


def prefix_rows(name: str, rounds: Rounds, _rng: random.Random) -> list[Row]:
    rows = []
    for driver in (OurEngine.name, LlamaServer.name):
        pairs = [one[driver] for one in rounds[""]]
        label = f"{name}: {SHARED_TOKENS} shared + {NEW_TOKENS} new tokens, {driver}"
        bar = 0.08 if driver == OurEngine.name else None
        rows.append(row(f"{label}: TTFT by cold", statistics.median(w / c for c, w in pairs), "x", bar=bar))
        rows.append(row(f"{label}: TTFT", statistics.median(w for _, w in pairs), "ms"))
        rows.append(row(f"{label}: TTFT cold", statistics.median(c for c, _ in pairs), "ms"))
    return rows


async def play_long(pair: Pair, _unit: str, number: int) -> Figures:
    found: Figures = {}
    for driver in pair.in_turn(number):
        into = Disturbed()
        rng = pair.rng_of(number)
        await scenarios.disturbed_round(driver, rng, RUNNING, LONG_TOKENS, RUNNING_TOKENS, into)
        found[driver.name] = [into.calm_ms, into.beside_ms, into.long_ttft_ms, into.longest_ms]
    return found


def long_rows(name: str, rounds: Rounds, _rng: random.Random) -> list[Row]:
    rows = []
    for driver in (OurEngine.name, LlamaServer.name):
        parts = zip(*(one[driver] for one in rounds[""]), strict=True)
        figures = Disturbed(*([value for values in part for value in values] for part in parts))
        label = f"{name}: {RUNNING} answers beside a prompt of {LONG_TOKENS} tokens, {driver}"
        bar = 2.5 if driver == OurEngine.name else None
        rows.append(row(f"{label}: p99 between tokens by undisturbed", figures.ratio(), "x", bar=bar))
        rows.append(row(f"{label}: p99 undisturbed", percentile(figures.calm_ms, 0.99), "ms"))
        rows.append(row(f"{label}: longest", max(figures.longest_ms), "ms"))
        rows.append(row(f"{label}: TTFT of the prompt", statistics.median(figures.long_ttft_ms), "ms"))
    return rows


async def play_streams(pair: Pair, unit: str, number: int) -> Figures:
    prompts = await pair.lasting(max(STREAMS))
    into = Streams()
    await scenarios.streams_round(pair.ours, pair.theirs, prompts[: int(unit)], number, into)
    pairs = {"decode": into.decode, "whole": into.whole, "ttft": into.ttft}
    return {figure: [found.ours[0], found.theirs[0]] for figure, found in pairs.items()}


def streams_rows(name: str, rounds: Rounds, rng: random.Random) -> list[Row]:
    def pairs(unit: str, figure: str) -> Pairs:
        ours, theirs = zip(*(one[figure] for one in rounds[unit]), strict=True)
        return Pairs(list(ours), list(theirs))

    figures = {int(unit): Streams(*(pairs(unit, f) for f in ("decode", "whole", "ttft"))) for unit in rounds}
    return [*decode_rows(name, figures, rng), *ttft_rows(name, figures[max(figures)].ttft)]


def decode_rows(name: str, figures: Mapping[int, Streams], rng: random.Random) -> list[Row]:
    rows = []
    for count, streams in figures.items():
        pairs = streams.decode
        low, high = pairs.interval(rng)
        label = f"{name}, {count} streams"
        rows.append(row(f"{label}: decode, ours by llama-server", pairs.ratio(), "x", bar=0.95, sense=">="))
        rows.append(row(f"{label}: 95 % interval from", low, "x"))
        rows.append(row(f"{label}: 95 % interval to", high, "x"))
        rows.append(row(f"{label}: pairs", len(pairs.ours), ""))
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


def plain_rows(name: str, rounds: Rounds, _rng: random.Random) -> list[Row]:
    ((unit, found),) = rounds.items()
    ratio = statistics.median(one["decode"][0] / one["decode"][1] for one in found)
    label = f"{name}, {unit} streams: decode, ours by llama-server without flash attention"
    return [row(label, ratio, "x"), row(f"{label}: pairs", len(found), "")]


async def play_hits(pair: Pair, unit: str, _number: int) -> Figures:
    prompts = trace()
    hits = await replay(pair.ours if unit == OurEngine.name else pair.theirs, prompts)
    return {"cached": hits.cached, "prompt": hits.prompt, "most": most_hits(prompts), "asked": len(prompts)}


def hits_rows(name: str, rounds: Rounds, _rng: random.Random) -> list[Row]:
    shares = {unit: found[0]["cached"] / found[0]["prompt"] for unit, found in rounds.items()}
    ours, theirs = shares[OurEngine.name], shares[LlamaServer.name]
    one = rounds[OurEngine.name][0]
    label = f"{name}: {one['asked']} prompts of a trace"
    return [
        row(
            f"{label}: tokens found in the cache, ours by llama-server",
            ours / theirs,
            "x",
            bar=1.3,
            sense=">=",
        ),
        row(f"{label}: found, ours", ours * 100.0, "%"),
        row(f"{label}: found, llama-server", theirs * 100.0, "%"),
        row(f"{label}: found if nothing were given up", one["most"] * 100.0, "%"),
    ]


PARTS = {
    "share": Part(play_share, share_rows, 0, 0),
    "prefix": Part(play_prefix, prefix_rows, 4, SHARED_TOKENS + 2 * NEW_TOKENS + 64),
    "long": Part(
        play_long, long_rows, RUNNING + 1, LONG_TOKENS + 64, rounds=lambda asked: max(1, asked // 3)
    ),
    "plain": Part(
        play_streams,
        plain_rows,
        max(STREAMS),
        512,
        units=(str(max(STREAMS)),),
        rounds=lambda asked: max(1, asked // 3),
        flash="off",
    ),
    "hits": Part(
        play_hits,
        hits_rows,
        HIT_SLOTS,
        HIT_CONTEXT,
        units=(OurEngine.name, LlamaServer.name),
        rounds=lambda _asked: 1,
        parks=True,
    ),
    "streams": Part(
        play_streams, streams_rows, max(STREAMS), 512, units=tuple(map(str, STREAMS)), every_model=True
    ),
}
