"""What gateway, link and SDK add to the time to the first token.

Client (this process), gateway and edge daemon are three processes. Requests come as a Poisson process at a
fixed rate, whatever is still running. Each one's figure is the TTFT that the client measured minus the queue
and prefill times that the node stamped on its first token: all the rest of the way, there and back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

import tidegate
from benchmarks.common import CannotMeasure, Row, cpu_s, percentile, row, run
from benchmarks.processes import Programs

RATE_PER_S = 20.0
WARM_UP_REQUESTS = 40
ANSWER_TOKENS = 16
PROMPT = "Say in a few words what a tide gate is and where one stands. " * 12
BAR_MS = 3.0

# Prefill of the prompt takes about 10 ms and a token 10 ms, in a batch of up to 16.
ENGINE = """
[engine]
kind = "oracle"
slots = 16
queue_limit = 64
[engine.oracle]
prefill_tokens_per_s = 20000
decode = [[1, 100.0], [16, 100.0]]
cache_tokens = 0
"""

Ask = Callable[[str], Awaitable[float]]
"""Sends one prompt and returns the milliseconds added."""


async def over_grpc(client: tidegate.Client, prompt: str) -> float:
    async with client.generate(prompt, max_tokens=ANSWER_TOKENS) as stream:
        async for _ in stream:
            pass
    assert stream.ttft_ms is not None
    assert stream.finished is not None
    stamps = stream.finished.timings
    return stream.ttft_ms - stamps.queue_ms - stamps.prefill_ms


async def over_http(session: aiohttp.ClientSession, url: str, prompt: str) -> float:
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": ANSWER_TOKENS,
        "stream": True,
    }
    began_s, ttft_ms, stamps = time.monotonic(), math.nan, None
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            if math.isnan(ttft_ms) and b'"content":""' not in line:
                ttft_ms = (time.monotonic() - began_s) * 1000
            message: dict[str, Any] = json.loads(line[6:])
            stamps = message.get("tidegate", {}).get("timings", stamps)
    assert stamps is not None
    return float(ttft_ms - stamps["queue_ms"] - stamps["prefill_ms"])


@dataclass(slots=True)
class OpenLoop:
    """Sends at random moments and never waits for an answer before the next request."""

    ask: Ask
    rng: random.Random
    added_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)

    async def run(self, requests: int) -> None:
        due_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(requests):
                due_s += self.rng.expovariate(RATE_PER_S)
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                self.late_ms.append((time.monotonic() - due_s) * 1000)
                group.create_task(self._one(f"{number} {self.rng.random()} {PROMPT}"))

    async def _one(self, prompt: str) -> None:
        self.added_ms.append(await self.ask(prompt))


async def measure() -> list[Row]:
    parser = argparse.ArgumentParser(description="what gateway, link and SDK add to the TTFT")
    parser.add_argument("--requests", type=int, default=500, help="requests per door (default 500)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the arrivals (default 1)")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    async with Programs() as programs:
        gateway = await programs.start_gateway()
        await programs.start_edge("bench-edge", ENGINE)
        await programs.wait_nodes(1)
        async with tidegate.Client(programs.grpc_address) as client, aiohttp.ClientSession() as session:

            async def http(prompt: str) -> float:
                return await over_http(session, programs.http_url, prompt)

            async def grpc(prompt: str) -> float:
                return await over_grpc(client, prompt)

            try:
                rows = await _door("gRPC", grpc, args.requests, rng, gateway.pid, bar=BAR_MS)
                return rows + await _door("HTTP", http, args.requests, rng, gateway.pid, bar=None)
            except ExceptionGroup as errors:
                raise CannotMeasure(f"a request failed: {errors.exceptions[0]}") from errors


async def _door(
    name: str, ask: Ask, requests: int, rng: random.Random, gateway_pid: int, *, bar: float | None
) -> list[Row]:
    await OpenLoop(ask, rng).run(WARM_UP_REQUESTS)
    loop = OpenLoop(ask, rng)
    began_s, began_cpu_s = time.monotonic(), cpu_s(gateway_pid)
    await loop.run(requests)
    cores = (cpu_s(gateway_pid) - began_cpu_s) / (time.monotonic() - began_s)
    added = loop.added_ms
    return [
        row(
            f"{name}: TTFT added, {len(added)} requests at {RATE_PER_S:g}/s, p50",
            percentile(added, 0.5),
            "ms",
            bar=bar,
        ),
        row(f"{name}: TTFT added, p95", percentile(added, 0.95), "ms"),
        row(f"{name}: TTFT added, p99", percentile(added, 0.99), "ms"),
        row(f"{name}: the client's own lateness in sending, p99", percentile(loop.late_ms, 0.99), "ms"),
        row(f"{name}: gateway CPU meanwhile", cores, "cores"),
    ]


if __name__ == "__main__":
    sys.exit(run("added_ttft", measure))
