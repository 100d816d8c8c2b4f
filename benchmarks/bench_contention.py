"""Threads adapted at run time against fixed numbers of threads, undisturbed and beside a busy process.

Three engines hold the same model: one adapts its threads between one and all cores, the others compute with
one thread and with all of them, always. They answer in turn, each round in another order; a figure is the
median over rounds. Each state holds a little longer than a turn; what it costs to find out in the middle of
work that a core was taken is shown apart.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bench_engine import model_file
from benchmarks.common import CannotMeasure, ForeignLoad, Row, row, run
from benchmarks.engine import scenarios
from benchmarks.engine.drivers import OurEngine
from benchmarks.engine.timeline import Timeline
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import Sampling

STREAMS = 4
PROMPT_TOKENS, CONTEXT_TOKENS = 32, 2048
# Both models have the bundled one's tokenizer; these are its tokens that end an answer.
ENDLESS = Sampling(temperature=0.0, logit_bias=((0, -1e6), (2, -1e6)))
MOST_FOREIGN_CORES = 0.25
WAIT_S = 10
# So many times the wanted rounds, before those that others disturbed are given up.
_TRIES = 3
ADAPTIVE = "adaptive"
CALM, DISTURBED, ONSET = "undisturbed", "one core taken", "from when one core is taken"
# The state holds for so long before the first request: an engine that rests looks around once a second.
SETTLE_S = 1.5
CALM_S = 1.0
# The adaptive engine by the best fixed one; what finding out costs has no bar of its own.
BARS = {CALM: 0.97, DISTURBED: 0.85, ONSET: None}


@dataclass(slots=True)
class Taken:
    """Tokens/s by setting, one entry a round; for the adaptive engine also when it changed its threads."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    adapted_s: list[float] = field(default_factory=list)
    left_out: int = 0

    @property
    def rounds(self) -> int:
        return len(self.rates.get(ADAPTIVE, ()))

    def ratio(self) -> float:
        """The adaptive engine by the better of the fixed ones, the better by its median."""
        fixed = {name: rates for name, rates in self.rates.items() if name != ADAPTIVE}
        best = max(fixed.values(), key=statistics.median)
        return statistics.median(a / b for a, b in zip(self.rates[ADAPTIVE], best, strict=True))


@contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    """A loop that takes one core, in a process of its own."""
    if not wanted:
        yield
        return
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield
    finally:
        child.kill()
        child.wait()


def engines(path: Path, cores: int) -> dict[str, OurEngine]:
    def one(threads: int, *, adapt: bool) -> OurEngine:
        settings = LlamaCppSettings(
            model_path=path,
            model="bench",
            threads=threads,
            adapt_threads=adapt,
            slots=STREAMS,
            context_tokens=CONTEXT_TOKENS,
            embeddings="off",
        )
        return OurEngine(settings)

    return {
        ADAPTIVE: one(cores, adapt=True),
        "1 thread": one(1, adapt=False),
        f"{cores} threads": one(cores, adapt=False),
    }


async def turn(
    driver: OurEngine, prompts: Sequence[str], state: str, seconds: float
) -> tuple[float, float | None]:
    """(tokens/s of all answers, s until the threads were changed, if they were), both in the given state."""
    clock = asyncio.get_running_loop().time
    with busy_process(state == DISTURBED):
        await asyncio.sleep(SETTLE_S)
        began_s, threads = clock(), driver.engine.threads
        answers = [
            asyncio.create_task(driver.answer(text, CONTEXT_TOKENS, sampling=ENDLESS), name="bench-turn")
            for text in prompts
        ]
        if state == ONSET:
            await asyncio.sleep(CALM_S)
        with busy_process(state == ONSET):
            if state == ONSET:
                began_s, threads = clock(), driver.engine.threads
            changed_s = None
            while clock() < began_s + seconds:
                await asyncio.sleep(0.02)
                if changed_s is None and driver.engine.threads != threads:
                    changed_s = clock() - began_s
        driver.abandon()
        ended_s = clock()
        lines: list[Timeline] = await asyncio.gather(*answers)
    inside = sum(began_s < at_s <= ended_s for line in lines for at_s in line.tokens_s)
    return inside / (ended_s - began_s), changed_s


async def until_free() -> None:
    """Waits for others to end their work, but not for ever."""
    for _ in range(WAIT_S):
        load = ForeignLoad()
        await asyncio.sleep(1.0)
        if load.cores() < MOST_FOREIGN_CORES:
            return


async def one_round(
    drivers: dict[str, OurEngine],
    order: Sequence[str],
    state: str,
    into: Taken,
    prompts: Sequence[str],
    seconds: float,
) -> None:
    """Every setting once. A round in which anything else used the machine says nothing and is left out."""
    rates: dict[str, float] = {}
    adapted_s: list[float] = []
    await until_free()
    for setting in order:
        load = ForeignLoad()
        rates[setting], changed_s = await turn(drivers[setting], prompts, state, seconds)
        if load.cores() > MOST_FOREIGN_CORES:
            into.left_out += 1
            return
        adapted_s += [] if changed_s is None else [changed_s]
    for setting, rate in rates.items():
        into.rates.setdefault(setting, []).append(rate)
    into.adapted_s += adapted_s


async def measure_model(name: str, options: argparse.Namespace) -> dict[str, Taken]:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        raise CannotMeasure("two cores are needed")
    drivers = engines(await model_file(name), cores)
    taken = {state: Taken() for state in BARS}
    began_s = time.monotonic()
    try:
        for driver in drivers.values():
            await driver.start()
        rng = random.Random(options.seed)
        prompts = [scenarios.prompt(rng, PROMPT_TOKENS) for _ in range(STREAMS)]
        for number in range(_TRIES * options.rounds):
            names = list(drivers)
            order = names[number % len(names) :] + names[: number % len(names)]
            for state, into in taken.items():
                if into.rounds < options.rounds:
                    await one_round(drivers, order, state, into, prompts, options.seconds)
            kept = " and ".join(f"{into.rounds} {state}" for state, into in taken.items())
            print(f"{name}: round {number + 1}; of {options.rounds} there are {kept}", flush=True)
            is_late = time.monotonic() > began_s + options.max_s
            if is_late or all(into.rounds == options.rounds for into in taken.values()):
                break
    finally:
        for driver in drivers.values():
            await driver.stop()
    return taken


def rows_of(name: str, taken: dict[str, Taken]) -> list[Row]:
    rows = []
    for state, bar in BARS.items():
        figures = taken[state]
        if not figures.rounds and bar is None:
            continue
        if not figures.rounds:
            raise CannotMeasure(f"{name}: in no round was the machine free of other work")
        label = f"{name}, {state}"
        rows.append(row(f"{label}: adaptive by best fixed", figures.ratio(), "x", bar=bar, sense=">="))
        for setting, rates in figures.rates.items():
            rows.append(row(f"{label}: {setting}", statistics.median(rates), "tokens/s"))
        if figures.adapted_s:
            rows.append(row(f"{label}: until adapted, p50", statistics.median(figures.adapted_s), "s"))
            rows.append(row(f"{label}: until adapted, worst", max(figures.adapted_s), "s"))
        rows.append(row(f"{label}: rounds", figures.rounds, ""))
        rows.append(row(f"{label}: rounds left out, disturbed by others", figures.left_out, ""))
        changed = len(figures.adapted_s) / len(figures.rates[ADAPTIVE])
        rows.append(row(f"{label}: turns in which it adapted", 100.0 * changed, "%"))
    return rows


async def measure() -> list[Row]:
    parser = argparse.ArgumentParser(description="threads adapted at run time against fixed ones")
    parser.add_argument("--rounds", type=int, default=9, help="rounds per figure (default 9)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a turn in s (default 5)")
    parser.add_argument("--max-s", type=float, default=1200.0, help="longest for a model in s (default 1200)")
    parser.add_argument("--models", default="Q4_0,random-1.5B", help="comma-separated")
    parser.add_argument("--seed", type=int, default=1, help="seed of the prompts (default 1)")
    args = parser.parse_args()
    rows: list[Row] = []
    for name in args.models.split(","):
        rows += rows_of(name, await measure_model(name, args))
    return rows


if __name__ == "__main__":
    sys.exit(run("contention", measure))
