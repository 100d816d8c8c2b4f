"""The engine's child is killed, broken and stopped under load, and its sequences are cancelled at any moment.

Faults: the engine as a node runs it, every slot busy and as many requests waiting. From the blow until the
next request's first token counts. It may take as long as the first child of this run needed to be ready
(without measuring its speeds), a second, and for a stopped child the watchdog's limit. Cancels: one stream
after another is cancelled at a random moment while others run on, whose tokens are compared with an
undisturbed run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field

from benchmarks.common import CannotMeasure, Row, percentile, row, run
from benchmarks.engine.scenarios import prompt
from benchmarks.engine.watched import Watched
from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.prepare import prepare
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import AttemptKey, Cause, Failure

SLOTS = 4
HANG_S = 2.0
ENDLESS = 900
OTHERS = 3
OTHERS_TOKENS = 400
FREED_S = 10.0
BLOWS = {"kill -9": signal.SIGKILL, "SIGSEGV": signal.SIGSEGV, "SIGSTOP": signal.SIGSTOP}


@dataclass(slots=True)
class Blows:
    """What the blows of one kind led to."""

    served_s: list[float] = field(default_factory=list)
    requests: int = 0
    wrong: int = 0


async def blow(watched: Watched, name: str, seen: Blows, rng: random.Random) -> None:
    """One blow under load, and the next request."""
    keys = [watched.submit(prompt(rng, 32), ENDLESS) for _ in range(2 * SLOTS)]
    await watched.until(lambda: sum(bool(watched.outputs.get(key)) for key in keys) >= SLOTS)
    await asyncio.sleep(rng.uniform(0.0, 0.3))
    pid = watched.engine.child_pid
    if pid is None:
        raise CannotMeasure("the engine has no child before the blow")
    struck_s = time.monotonic()
    os.kill(pid, BLOWS[name])
    await all_ended(watched, keys)
    after = watched.submit(prompt(rng, 32), 8)
    await watched.until(lambda: bool(watched.outputs.get(after)))
    seen.served_s.append(time.monotonic() - struck_s)
    await watched.until(lambda: bool(watched.finishes(after)))
    expected = Cause.ENGINE_HUNG if name == "SIGSTOP" else Cause.ENGINE_CRASHED
    seen.requests += len(keys)
    seen.wrong += sum(not ended_once(watched, key, expected) for key in keys)
    seen.wrong += isinstance(watched.finishes(after)[0].result, Failure)


def ended_once(watched: Watched, key: AttemptKey, cause: Cause) -> bool:
    """One finish, the last of its outputs, with this cause, and contiguous tokens before it."""
    finishes, outputs = watched.finishes(key), watched.outputs[key]
    result = finishes[0].result
    typed = isinstance(result, Failure) and result.cause is cause
    return typed and len(finishes) == 1 and outputs[-1].finish is not None and watched.contiguous(key)


async def faults(settings: LlamaCppSettings, times: int, rng: random.Random) -> list[Row]:
    watched = Watched(settings)
    began_s = time.monotonic()
    await watched.start()
    load_s = time.monotonic() - began_s - watched.measure_s
    seen = {name: Blows() for name in BLOWS}
    try:
        for number in range(times):
            name = list(BLOWS)[number % len(BLOWS)]
            await blow(watched, name, seen[name], rng)
    finally:
        await watched.stop()
    rows = [row("load time: start until ready, without measuring speeds", load_s, "s")]
    for name, of in seen.items():
        limit_s = load_s + 1.0 + (HANG_S * 1.25 if name == "SIGSTOP" else 0.0)
        served = f"{name}, {len(of.served_s)} times: next request served"
        rows.append(row(f"{served}, worst", max(of.served_s), "s", bar=round(limit_s, 3)))
        rows.append(row(f"{served}, median", statistics.median(of.served_s), "s"))
        ended = f"{name}: of {of.requests} requests not ended by exactly one typed failure"
        rows.append(row(ended, of.wrong, "requests", bar=0, sense="=="))
    return rows


@dataclass(slots=True)
class Cancels:
    """What the tries led to; the others are streams that nobody cancels."""

    tries: int = 0
    steps_until_free: list[int] = field(default_factory=list)
    tokens_after: int = 0
    others: int = 0
    others_wrong: int = 0
    others_identical: int = 0


async def cancels(settings: LlamaCppSettings, tries: int, rng: random.Random) -> list[Row]:
    watched = Watched(settings)
    await watched.start()
    prompts = [prompt(rng, 24) for _ in range(OTHERS)]
    seen = Cancels()
    try:
        alone = [watched.submit(text, OTHERS_TOKENS) for text in prompts]
        await all_ended(watched, alone)
        whole = [watched.tokens(key) for key in alone]
        while seen.tries < tries:
            others = [watched.submit(text, OTHERS_TOKENS) for text in prompts]
            cancelled: list[AttemptKey] = []
            while seen.tries < tries and not all(watched.finishes(key) for key in others):
                await one_cancel(watched, seen, cancelled, rng)
            await all_ended(watched, others)
            judge(watched, seen, others, whole)
            seen.tokens_after += sum(watched.late.get(key, 0) for key in cancelled)
    finally:
        await watched.stop()
    return [
        row(
            f"cancel, {seen.tries} tries: steps until free, worst", max(seen.steps_until_free), "steps", bar=1
        ),
        row("cancel: steps until free, p99", percentile(seen.steps_until_free, 0.99), "steps"),
        row("cancel: tokens after it", seen.tokens_after, "tokens", bar=0, sense="=="),
        row(f"of {seen.others} other streams with a gap or double", seen.others_wrong, "", bar=0, sense="=="),
        row("others byte-identical to the undisturbed run", seen.others_identical / seen.others, "share"),
    ]


async def all_ended(watched: Watched, keys: list[AttemptKey]) -> None:
    await watched.until(lambda: all(watched.finishes(key) for key in keys))


async def one_cancel(
    watched: Watched, seen: Cancels, cancelled: list[AttemptKey], rng: random.Random
) -> None:
    """Counts the steps between the call and the slot's return, without the one that runs at the call."""
    key = watched.submit(prompt(rng, rng.randint(4, 64)), ENDLESS)
    await asyncio.sleep(rng.uniform(0.0, 0.12))
    if not watched.cancel(key):
        return
    before = watched.batches
    async with asyncio.timeout(FREED_S):
        while not watched.cancelled_are_free:
            await asyncio.sleep(0)
    seen.steps_until_free.append(max(0, watched.batches - before - 1))
    seen.tries += 1
    cancelled.append(key)


def judge(watched: Watched, seen: Cancels, others: list[AttemptKey], whole: list[tuple[int, ...]]) -> None:
    for key, tokens in zip(others, whole, strict=True):
        seen.others += 1
        complete = len(watched.finishes(key)) == 1 and not isinstance(
            watched.finishes(key)[0].result, Failure
        )
        seen.others_wrong += not (complete and watched.contiguous(key))
        seen.others_identical += watched.tokens(key) == tokens


async def measure() -> list[Row]:
    parser = argparse.ArgumentParser(description="the engine's child is struck under load, and cancelled")
    parser.add_argument("--blows", type=int, default=50, help="blows in all (default 50)")
    parser.add_argument("--cancels", type=int, default=1000, help="cancelled streams (default 1000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of moments and prompts (default 1)")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    path = prepare(bundled_model(), ["Q4_0"], default_models_dir(), model=MODEL)[0].path
    settings = LlamaCppSettings(
        model_path=path, model=MODEL, slots=SLOTS, context_tokens=1024, hang_timeout_s=HANG_S
    )
    return [*await faults(settings, args.blows, rng), *await cancels(settings, args.cancels, rng)]


if __name__ == "__main__":
    sys.exit(run("engine_faults", measure))
