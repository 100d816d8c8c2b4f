"""A recorded trace of conversations, made small enough for a small model: equal blocks become equal words.

Each line of the trace names its prompt's 512-token blocks by numbers; equal numbers are equal text with equal
text in front. Every `EVERY`th conversation is taken, whole, in the order of arrival; conversations are told
apart by their second block, because all begin with the same first. A block becomes `BLOCK_WORDS` words.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import CannotMeasure
from benchmarks.engine.drivers import Driver
from benchmarks.engine.scenarios import WORDS

TRACE = "traces/mooncake_conversation_first_half.jsonl"
BLOCK_WORDS, EVERY, MOST_BLOCKS = 16, 20, 100
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Hits:
    """Prompt tokens that were found in the cache, of all."""

    cached: int
    prompt: int

    @property
    def share(self) -> float:
        return self.cached / self.prompt


def read_blocks(path: Path) -> list[tuple[int, ...]]:
    """The blocks of each taken prompt. Raises CannotMeasure."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        prompts = [tuple(json.loads(line)["hash_ids"]) for line in lines]
    except (OSError, ValueError, KeyError) as error:
        raise CannotMeasure(f"{path} cannot be read as a trace: {error}") from error
    return list(_thinned(prompts))


def _thinned(prompts: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    numbers: dict[int, int] = {}
    for blocks in prompts:
        if 2 <= len(blocks) <= MOST_BLOCKS:
            number = numbers.setdefault(blocks[1], len(numbers))
            if number % EVERY == 0:
                yield blocks


def text_of(blocks: Sequence[int]) -> str:
    """Words of the blocks: the same for the same block."""
    return " ".join(word for block in blocks for word in random.Random(block).choices(WORDS, k=BLOCK_WORDS))


def most_hits(prompts: Sequence[Sequence[int]]) -> float:
    """The share that a cache without limits would find."""
    seen: set[int] = set()
    found = 0
    for blocks in prompts:
        found += next((i for i, block in enumerate(blocks) if block not in seen), len(blocks))
        seen.update(blocks)
    return found / sum(map(len, prompts))


async def replay(driver: Driver, prompts: Sequence[Sequence[int]]) -> Hits:
    """All prompts in order, a few at a time."""
    waiting = iter(prompts)
    cached = total = 0

    async def ask() -> None:
        nonlocal cached, total
        for blocks in waiting:
            line = await driver.answer(text_of(blocks), 2, cached="trace")
            cached, total = cached + line.cached_tokens, total + line.prompt_tokens

    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    return Hits(cached, total)
