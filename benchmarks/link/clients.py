"""A process of clients of one kind.

    python -m benchmarks.link.clients GATEWAY streams COUNT MODEL
    python -m benchmarks.link.clients GATEWAY big-prompts 1 MODEL
    python -m benchmarks.link.clients GATEWAY stopped-reader 1 MODEL

Each line on stdin is answered with what was seen since the last one: answers begun and running now, tokens
received, and the time between two tokens of a stream in ms.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import asdict, dataclass, field

import tidegate
from benchmarks.link.simnode import FLOOD
from benchmarks.talker import commands, say

ENDLESS_TOKENS = 8192
FLOOD_TOKENS = 1_000_000
BIG_PROMPT = "tide " * (4 * 1024 * 1024 // 5)
# Shorter than the gateway's patience with a reader that takes nothing.
STOPPED_S = 25.0
PAUSE_S = 0.5


@dataclass(slots=True)
class Seen:
    begun: int = 0
    tokens: int = 0
    gaps_ms: list[float] = field(default_factory=list)


class Clients:
    def __init__(self, client: tidegate.Client, model: str) -> None:
        self._client = client
        self._model = model
        self.seen = Seen()

    async def streams(self) -> None:
        """Reads one endless answer after the other."""
        while True:
            last_s = 0.0
            prompt = "the tide comes in"
            async with self._client.generate(prompt, model=self._model, max_tokens=ENDLESS_TOKENS) as chunks:
                async for chunk in chunks:
                    now_s = time.monotonic()
                    if last_s:
                        self.seen.gaps_ms.append((now_s - last_s) * 1000)
                    else:
                        self.seen.begun += 1
                    last_s = now_s
                    self.seen.tokens += chunk.count

    async def big_prompts(self) -> None:
        """Sends 4 MiB, waits for the first token, and after a pause sends them again."""
        while True:
            await self._client.complete(BIG_PROMPT, model=self._model, max_tokens=1)
            self.seen.begun += 1
            await asyncio.sleep(PAUSE_S)

    async def stopped_reader(self) -> None:
        """Opens a flood, takes its first token and then nothing."""
        while True:
            async with self._client.generate(FLOOD, model=self._model, max_tokens=FLOOD_TOKENS) as chunks:
                await anext(chunks)
                self.seen.begun += 1
                await asyncio.sleep(STOPPED_S)


async def main(gateway: str, kind: str, count: int, model: str) -> None:
    async with tidegate.Client(gateway) as client, asyncio.TaskGroup() as group:
        clients = Clients(client, model)
        one = {
            "streams": clients.streams,
            "big-prompts": clients.big_prompts,
            "stopped-reader": clients.stopped_reader,
        }[kind]
        for _ in range(count):
            group.create_task(one())
        orders = await commands()
        while await orders.readline():
            seen, clients.seen = clients.seen, Seen()
            say(asdict(seen))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
