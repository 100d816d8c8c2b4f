"""A whole fleet of real processes for end-to-end tests, and what is exactly known of its answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import tidegate
from serving.engines.oracle import oracle_text, oracle_tokens
from tidegate.routing.prefix import canonical_bytes
from tidegate_cli.stack import FleetOptions, LocalFleet
from tidegate_cli.stack.configs import ModelFiles
from tidegate_cli.stack.fleet import EDGES
from tidegate_cli.stack.ports import free_ports

ONCE = tidegate.RetryPolicy(attempts=1)


@contextmanager
def running_fleet(
    engine: Any, *, pacing: float = 1.0, models: ModelFiles | None = None
) -> Iterator[LocalFleet]:
    """Up, and whole; everything has ended afterwards."""
    options = FleetOptions(ports=free_ports(), engine=engine, pacing=pacing, models=models)
    fleet = LocalFleet(options, lambda line: None)
    try:
        asyncio.run(fleet.start())
        yield fleet
    finally:
        asyncio.run(fleet.stop())


async def make_whole(fleet: LocalFleet) -> None:
    """Starts again what an earlier test killed."""
    dead = fleet.dead()
    if "redis" in dead:
        await fleet.start_redis()
    if "gateway" in dead:
        await fleet.start_gateway("tidegate")
    for name in EDGES:
        if name in dead:
            await fleet.start_edge(name)
    if "cloud-1" in dead:
        await fleet.start_cloud()
    await fleet.wait_whole()


@dataclass(slots=True)
class Asked:
    """One request, what came of it, and when (seconds of the monotonic clock)."""

    prompt: str
    chunks: list[tidegate.Chunk] = field(default_factory=list)
    route: tidegate.Route | None = None
    completion: tidegate.Completion | None = None
    error: tidegate.TidegateError | None = None
    ended_s: float = 0.0

    @property
    def node(self) -> str:
        return self.route.node_name if self.route else ""

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for chunk in self.chunks for token in chunk.token_ids)

    def check(self, max_tokens: int) -> None:
        """Everything that came is the oracle's answer, from its first token on, none missing or doubled."""
        assert self.route is not None
        wanted = canonical_bytes([tidegate.Message(tidegate.Role.USER, self.prompt)])
        digest = self.route.variant_digest
        assert self.tokens == oracle_tokens(digest, wanted, len(self.tokens))
        at = 0
        for chunk in self.chunks:
            assert chunk.first_index == at
            at += chunk.count
        if self.completion is not None:
            assert at == max_tokens == self.completion.usage.completion_tokens
            assert self.completion.text == oracle_text(digest, wanted, max_tokens)


async def ask(
    client: tidegate.Client,
    prompt: str,
    on_chunk: Callable[[Asked], None] = lambda asked: None,
    **options: Any,
) -> Asked:
    """Errors of the gateway are outcomes here."""
    asked = Asked(prompt)
    stream = client.generate(prompt, **{"deadline_s": 60.0, **options})
    try:
        async with stream:
            async for chunk in stream:
                asked.route = stream.route
                asked.chunks.append(chunk)
                on_chunk(asked)
            asked.completion = stream.completion()
    except tidegate.TidegateError as error:
        asked.error = error
    asked.route = stream.route
    asked.ended_s = time.monotonic()
    return asked


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float) -> float:
    """Seconds until it holds. Fails after timeout_s."""
    started_s = time.monotonic()
    while not await holds():
        assert time.monotonic() - started_s < timeout_s, f"not within {timeout_s:g} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - started_s


def log_lines(fleet: LocalFleet, name: str) -> list[dict[str, Any]]:
    """The structured lines of a program so far."""
    lines = fleet.children[name].log_file.read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]
