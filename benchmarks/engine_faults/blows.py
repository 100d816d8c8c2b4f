"""The engine's child is killed, broken and stopped under load, again and again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from dataclasses import dataclass, field

from benchmarks.common import CannotMeasure, Row, row
from benchmarks.engine.scenarios import prompt
from benchmarks.engine.watched import Watched
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import AttemptKey, Cause, Failure

SLOTS = 4
ENDLESS = 900
BLOWS = {"kill -9": signal.SIGKILL, "SIGSEGV": signal.SIGSEGV, "SIGSTOP": signal.SIGSTOP}
CAUSES = {
    "kill -9": Cause.ENGINE_CRASHED,
    "SIGSEGV": Cause.ENGINE_CRASHED,
    "SIGSTOP": Cause.ENGINE_HUNG,
}


@dataclass(slots=True)
class Blows:
    """What the blows of one kind led to."""

    served_s: list[float] = field(default_factory=list)
    requests: int = 0
    wrong: int = 0


async def started(watched: Watched) -> float:
    """How long the start took, in seconds, without measuring speeds."""
    began_s = time.monotonic()
    await watched.start()
    return time.monotonic() - began_s - watched.measure_s


async def load_time_s(settings: LlamaCppSettings) -> float:
    watched = Watched(LlamaCppEngine(settings))
    try:
        return await started(watched)
    finally:
        await watched.stop()


async def measure_blows(settings: LlamaCppSettings, times: int, rng: random.Random) -> list[Row]:
    engine = LlamaCppEngine(settings)
    watched = Watched(engine)
    load_s = await started(watched)
    seen = {name: Blows() for name in BLOWS}
    try:
        for number in range(times):
            name = list(BLOWS)[number % len(BLOWS)]
            await blow(watched, engine, name, seen[name], rng)
            print(f"blow {number + 1} of {times}: {name}, served {seen[name].served_s[-1]:.2f} s after it")
    finally:
        await watched.stop()
    return [
        row("blows: load time, from start until ready without measuring speeds", load_s, "s"),
        *rows_of("blows", seen, load_s, settings.hang_timeout_s),
    ]


async def blow(watched: Watched, engine: LlamaCppEngine, name: str, seen: Blows, rng: random.Random) -> None:
    """One blow with every slot busy and as many requests waiting, and the next request."""
    keys = [watched.submit(prompt(rng, 32), ENDLESS) for _ in range(2 * SLOTS)]
    await watched.until(lambda: sum(bool(watched.outputs.get(key)) for key in keys) >= SLOTS)
    await asyncio.sleep(rng.uniform(0.0, 0.3))
    pid = engine.child_pid
    if pid is None:
        raise CannotMeasure("the engine has no child before the blow")
    keys = [key for key in keys if not watched.finishes(key)]
    struck_s = time.monotonic()
    os.kill(pid, BLOWS[name])
    await all_ended(watched, keys)
    after = watched.submit(prompt(rng, 32), 8)
    await watched.until(lambda: bool(watched.outputs.get(after)))
    seen.served_s.append(time.monotonic() - struck_s)
    await watched.until(lambda: bool(watched.finishes(after)))
    seen.requests += len(keys)
    seen.wrong += sum(not ended_once(watched, key, CAUSES[name]) for key in keys)
    seen.wrong += isinstance(watched.finishes(after)[0].result, Failure)


def ended_once(watched: Watched, key: AttemptKey, cause: Cause) -> bool:
    """One finish, the last of its outputs, with this cause, and contiguous tokens before it."""
    finishes, outputs = watched.finishes(key), watched.outputs[key]
    result = finishes[0].result
    typed = isinstance(result, Failure) and result.cause is cause
    return typed and len(finishes) == 1 and outputs[-1].finish is not None and watched.contiguous(key)


async def all_ended(watched: Watched, keys: list[AttemptKey]) -> None:
    await watched.until(lambda: all(watched.finishes(key) for key in keys))


def rows_of(part: str, seen: dict[str, Blows], load_s: float, hang_s: float) -> list[Row]:
    """A stopped child is noticed by the watchdog only: its limit is added to the bar."""
    rows = []
    for name, of in seen.items():
        if not of.served_s:
            continue
        stopped = name == "SIGSTOP"
        limit_s = load_s + 1.0 + (hang_s if stopped else 0.0)
        watchdog = f", watchdog {hang_s:g} s" if stopped else ""
        served = f"{part}: {name}, {len(of.served_s)} times{watchdog}: next request served"
        rows.append(row(f"{served}, worst", max(of.served_s), "s", bar=round(limit_s, 3)))
        rows.append(row(f"{served}, median", statistics.median(of.served_s), "s"))
        ended = f"{part}: {name}: of {of.requests} requests not ended by exactly one {CAUSES[name]}"
        rows.append(row(ended, of.wrong, "requests", bar=0, sense="=="))
    return rows
