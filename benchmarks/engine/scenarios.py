"""The measurements, each over two drivers in turn; every round begins with the other one."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.common import percentile
from benchmarks.engine.drivers import Driver
from benchmarks.engine.timeline import Timeline, decode_rate, mean_ttft_ms, whole_rate

# Each is one token with a space in front in the vocabularies used here; checked by the caller.
WORDS = tuple(
    word
    for line in (
        "river gate mill tide sea stone light road house water field night day wind fire tree hill bridge",
        "boat ship town king queen child school garden window door table paper book letter music dance",
        "summer winter market bread milk glass gold silver iron wood horse bird fish dog cat mountain",
        "valley forest island",
    )
    for word in line.split()
)
PROMPT_TOKENS = ANSWER_TOKENS = 128


def prompt(rng: random.Random, tokens: int) -> str:
    """`tokens` words in an order that no cache has seen."""
    return " ".join(rng.choices(WORDS, k=tokens))


@dataclass(slots=True)
class Pairs:
    """One figure of both engines, round by round."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def add(self, driver: Driver, ours: Driver, value: float) -> None:
        (self.ours if driver is ours else self.theirs).append(value)

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True) if b > 0]

    def ratio(self) -> float:
        """Median of the pairs."""
        return statistics.median(self.ratios)

    def interval(self, rng: random.Random) -> tuple[float, float]:
        """95 % of the medians of resampled rounds."""
        ratios = self.ratios
        medians = [statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(1000)]
        return percentile(medians, 0.025), percentile(medians, 0.975)


@dataclass(slots=True)
class Streams:
    """Figures of one number of simultaneous streams."""

    decode: Pairs = field(default_factory=Pairs)
    whole: Pairs = field(default_factory=Pairs)
    ttft: Pairs = field(default_factory=Pairs)


async def streams_round(
    ours: Driver, theirs: Driver, prompts: Sequence[str], first: int, into: Streams
) -> None:
    """All prompts at once on one engine, then on the other."""
    for driver in _in_turn(ours, theirs, first):
        timelines = await asyncio.gather(*(driver.answer(text, ANSWER_TOKENS) for text in prompts))
        into.decode.add(driver, ours, decode_rate(timelines))
        into.whole.add(driver, ours, whole_rate(timelines))
        into.ttft.add(driver, ours, mean_ttft_ms(timelines))


async def lasting_prompts(driver: Driver, rng: random.Random, count: int) -> list[str]:
    """At most `count` prompts whose answers do not end before their tokens are used up."""
    kept: list[str] = []
    for _ in range(4):
        candidates = [prompt(rng, PROMPT_TOKENS) for _ in range(count)]
        tried = await asyncio.gather(*(driver.answer(text, ANSWER_TOKENS) for text in candidates))
        kept += [t for t, line in zip(candidates, tried, strict=True) if len(line.tokens_s) == ANSWER_TOKENS]
        if len(kept) >= count:
            break
    return kept[:count]


async def prefix_round(
    driver: Driver, rng: random.Random, number: int, shared: int, new: int
) -> tuple[float, float]:
    """(cold, warm) TTFT in ms of prompts with `shared` equal tokens in front of `new` of their own."""
    begin = prompt(rng, shared)
    ttfts = []
    for _ in range(2):
        timeline = await driver.answer(f"{begin} {prompt(rng, new)}", 2, cached=f"prefix{number}")
        ttfts.append(timeline.ttft_ms)
    return ttfts[0], ttfts[1]


@dataclass(slots=True)
class Disturbed:
    """Gaps between tokens of running answers, without and with a long prompt beside them."""

    calm_ms: list[float] = field(default_factory=list)
    beside_ms: list[float] = field(default_factory=list)
    long_ttft_ms: list[float] = field(default_factory=list)
    longest_ms: list[float] = field(default_factory=list)

    def ratio(self) -> float:
        return percentile(self.beside_ms, 0.99) / percentile(self.calm_ms, 0.99)


async def disturbed_round(
    driver: Driver, rng: random.Random, running: int, long_tokens: int, answer_tokens: int, into: Disturbed
) -> None:
    """`running` answers; after a fifth of their tokens a prompt of `long_tokens` arrives."""
    answers = [
        asyncio.create_task(driver.answer(prompt(rng, 16), answer_tokens), name="bench-running")
        for _ in range(running)
    ]
    lone = await driver.answer(prompt(rng, 16), answer_tokens // 5)
    long = await driver.answer(prompt(rng, long_tokens), 1)
    lines: list[Timeline] = await asyncio.gather(*answers)
    into.long_ttft_ms.append(long.ttft_ms)
    calm_start_s, calm_end_s = lone.tokens_s[0], lone.tokens_s[-1]
    for line in lines:
        into.calm_ms += line.gaps_ms(calm_start_s, calm_end_s)
        beside = line.gaps_ms(long.asked_s, long.tokens_s[0])
        into.beside_ms += beside
        into.longest_ms.append(max(beside, default=0.0))


def _in_turn(ours: Driver, theirs: Driver, first: int) -> tuple[Driver, Driver]:
    return (ours, theirs) if first % 2 == 0 else (theirs, ours)
