"""Sequences are cancelled at any moment while other streams run, whose tokens are known beforehand."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common import CannotMeasure, Row, percentile, row
from benchmarks.engine.scenarios import prompt
from benchmarks.engine.watched import PLAIN, Watched
from benchmarks.engine_faults.blows import ENDLESS, all_ended
from benchmarks.engine_faults.pieces import Cancels, Pieces
from serving.engines.base import Engine
from serving.engines.oracle import oracle_tokens
from tidegate.routing.domain import AttemptKey, Failure, OutputFormat, TokenLogprob

OTHERS = 3
FREED_S = 10.0
# How far below the likeliest token a token of a stream that took another turn may be, in nats.
TOLERANCE = 0.25
TOP = 10
FORCED_AT = 4
MORE = OutputFormat(grammar="root ::= [^\\x00]+")


@dataclass(frozen=True, slots=True)
class Plan:
    """`tokens` of each other stream. A cancel comes within `moment_s` of its request or of the first token.

    `known`: the other streams' tokens are the oracle's.
    """

    name: str
    tries: int
    tokens: int
    moment_s: float
    known: bool = False


async def measure_cancels(
    engine: Engine, plan: Plan, rng: random.Random, pieces: Pieces | None = None
) -> list[Row]:
    """Raises CannotMeasure when the piece ended before all tries were made; they are kept then."""
    pieces = pieces or Pieces()
    watched = Watched(engine)
    await watched.start()
    prompts = [prompt(rng, 24) for _ in range(OTHERS)]
    seen = pieces.seen()
    try:
        if plan.known:
            whole = [oracle_tokens(watched.digest, text.encode(), plan.tokens) for text in prompts]
        else:
            alone = [watched.submit(text, plan.tokens) for text in prompts]
            await all_ended(watched, alone)
            whole = [watched.tokens(key) for key in alone]
        while seen.tries < plan.tries and not pieces.over:
            await one_round(watched, plan, seen, list(zip(prompts, whole, strict=True)), rng)
            print(f"{plan.name}: {seen.tries} of {plan.tries} tries")
        seen.parted += len(seen.differing)
        seen.gaps += [] if plan.known else await forced_gaps(watched, seen)
    finally:
        await watched.stop()
    if seen.tries < plan.tries:
        pieces.keep(seen)
        raise CannotMeasure(f"{seen.tries} of {plan.tries} tries are made and kept: run it again")
    pieces.done()
    return rows_of(plan, seen)


async def one_round(
    watched: Watched,
    plan: Plan,
    seen: Cancels,
    expected: Sequence[tuple[str, tuple[int, ...]]],
    rng: random.Random,
) -> None:
    """The other streams from begin to end, and cancels all along."""
    others = [watched.submit(text, plan.tokens) for text, _ in expected]
    cancelled: list[AttemptKey] = []
    while seen.tries < plan.tries and not all(watched.finishes(key) for key in others):
        await one_cancel(watched, plan, seen, cancelled, rng)
    await all_ended(watched, others)
    for key, (text, tokens) in zip(others, expected, strict=True):
        seen.others += 1
        ended = watched.finishes(key)
        well = len(ended) == 1 and not isinstance(ended[0].result, Failure)
        seen.others_wrong += not (well and watched.contiguous(key))
        at = parted(tokens, watched.tokens(key))
        if at is not None:
            seen.differing.append((text, watched.tokens(key), at))
    seen.tokens_after += sum(watched.late.get(key, 0) for key in cancelled)


async def one_cancel(
    watched: Watched, plan: Plan, seen: Cancels, cancelled: list[AttemptKey], rng: random.Random
) -> None:
    """Counts the steps between the call and the slot's return, without the one that runs at the call."""
    key = watched.submit(prompt(rng, rng.randint(4, 64)), ENDLESS)
    if rng.random() < 0.5:
        await watched.until(lambda: bool(watched.outputs.get(key)))
    await asyncio.sleep(rng.uniform(0.0, plan.moment_s))
    unborn = not watched.outputs.get(key)
    if not watched.cancel(key):
        return
    before, began_s = watched.batches, time.monotonic()
    async with asyncio.timeout(FREED_S):
        while not watched.cancelled_are_free:
            await asyncio.sleep(0)
    seen.freed_ms.append((time.monotonic() - began_s) * 1000)
    seen.steps.append(max(0, watched.batches - before - 1))
    seen.tries += 1
    seen.before_first += unborn
    cancelled.append(key)


def parted(expected: Sequence[int], tokens: Sequence[int]) -> int | None:
    """Where the two differ first; None when they are the same."""
    for at, (one, other) in enumerate(zip(expected, tokens, strict=False)):
        if one != other:
            return at
    return None if len(expected) == len(tokens) else min(len(expected), len(tokens))


async def forced_gaps(watched: Watched, seen: Cancels) -> list[float]:
    """Teacher-forced: each differing stream's tokens are given to the idle engine, its next one is judged.

    At the place where it parts from the undisturbed run, and at some later ones. What is given counts as part
    of the answer's length.
    """
    gaps = []
    for text, tokens, parts_at in seen.differing:
        stride = max(1, (len(tokens) - parts_at) // FORCED_AT)
        for at in range(parts_at, len(tokens), stride):
            odds: Sequence[TokenLogprob] = ()
            # Where ending would be likeliest, nothing is drawn but under a grammar that asks for more.
            for format in (PLAIN, MORE):
                key = watched.submit(text, at + 1, after=tokens[:at], top_logprobs=TOP, format=format)
                await all_ended(watched, [key])
                odds = watched.logprobs(key)
                if odds:
                    break
            gaps.append(below_best(odds[0], tokens[at]) if odds else float("inf"))
    return gaps


def below_best(next_token: TokenLogprob, token: int) -> float:
    """How many nats `token` is less likely than the likeliest; infinite beyond those that are listed."""
    listed = {each.token_id: each.logprob for each in next_token.top}
    return next_token.top[0].logprob - listed[token] if token in listed else float("inf")


def rows_of(plan: Plan, seen: Cancels) -> list[Row]:
    name, same, gaps = plan.name, seen.others - seen.parted, seen.gaps
    tries = f"{name}: {seen.tries} cancels, {seen.before_first} of them before the first token"
    undisturbed = "the oracle's tokens" if plan.known else "the undisturbed run"
    share = f"{name}: of {seen.others} other streams byte-identical to {undisturbed}"
    rows = [
        row(f"{tries}: further steps until free, worst", max(seen.steps), "steps", bar=1),
        row(f"{name}: time until free, p50", percentile(seen.freed_ms, 0.5), "ms"),
        row(f"{name}: time until free, p99", percentile(seen.freed_ms, 0.99), "ms"),
        row(f"{name}: outputs after the cancel", seen.tokens_after, "outputs", bar=0, sense="=="),
        row(
            f"{name}: of {seen.others} other streams with a gap, a double or no good end",
            seen.others_wrong,
            "streams",
            bar=0,
            sense="==",
        ),
        row(share, same / seen.others, "share", bar=1.0 if plan.known else None, sense=">="),
    ]
    if not plan.known:
        worst = max(gaps, default=0.0)
        forced = f"{name}: {len(gaps)} tokens of {seen.parted} differing streams, teacher-forced"
        rows.append(row(f"{forced}: below the best, worst", worst, "nats", bar=TOLERANCE))
    return rows
