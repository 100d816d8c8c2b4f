"""The same blows on the engine of a real device daemon, asked over its local HTTP API."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.common import CannotMeasure, Row, row
from benchmarks.engine.scenarios import prompt
from benchmarks.engine_faults.blows import BLOWS, CAUSES, ENDLESS, SLOTS, Blows, load_time_s, rows_of
from benchmarks.processes import Programs
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate_cli.stack.process import ChildFailed

CHILD = b"serving.engines.llama_cpp.child"
ANSWERS_S = 60.0
TOML = """
[engine]
kind = "llama_cpp"
model = {model}
slots = {slots}
context_tokens = 1024
[engine.llama_cpp]
hang_timeout_s = {hang_s}
"""


@dataclass(slots=True)
class Told:
    """What one streamed answer gave: the codes of its errors, and what came after the first of them."""

    pieces: int = 0
    errors: list[str] = field(default_factory=list)
    after: int = 0
    whole: bool = False

    def take(self, line: bytes) -> None:
        """One line of the event stream."""
        if line.startswith(b"data: [DONE]"):
            self.whole = not self.errors
        elif line.startswith(b"data: {"):
            event: dict[str, Any] = json.loads(line[6:])
            self.after += bool(self.errors)
            if "error" in event:
                self.errors.append(str(event["error"]["code"]))
            else:
                self.pieces += 1


class Door:
    """The daemon's local API."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session = session
        self._url = f"http://127.0.0.1:{port}/v1/chat/completions"

    async def ask(self, text: str, tokens: int, told: Told) -> None:
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
        }
        async with self._session.post(self._url, json=body) as response:
            if response.status != 200:
                told.errors.append(str((await response.json())["error"]["code"]))
                return
            async for line in response.content:
                told.take(line)

    async def served(self, text: str) -> None:
        """Asks until there is a first token, as a client does that is told to try again."""
        async with asyncio.timeout(ANSWERS_S):
            while True:
                told = Told()
                asked = asyncio.create_task(self.ask(text, 8, told))
                while not told.pieces and not asked.done():
                    await asyncio.sleep(0.005)
                if told.pieces:
                    await asked
                    return
                await asyncio.sleep(0.02)


def engine_child(daemon: int) -> int | None:
    """The newest process of the engine below the daemon."""
    found = []
    for pid in map(int, Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()):
        try:
            if CHILD in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return max(found, default=None)


async def measure_daemon(settings: LlamaCppSettings, times: int, rng: random.Random) -> list[Row]:
    seen = {name: Blows() for name in BLOWS}
    load_s, hang_s = await load_time_s(settings), settings.hang_timeout_s
    toml = TOML.format(model=json.dumps(str(settings.model_path)), slots=SLOTS, hang_s=hang_s)
    try:
        async with Programs() as programs, aiohttp.ClientSession() as session:
            daemon = await programs.start_edge("bench-edge", toml)
            door = Door(session, programs.ports.edge_a)
            for number in range(times):
                name = list(BLOWS)[number % len(BLOWS)]
                await blow(door, daemon.pid, name, seen[name], rng)
                print(f"daemon blow {number + 1} of {times}: {name}, {seen[name].served_s[-1]:.2f} s")
            lives = float(daemon.alive)
    except ChildFailed as error:
        raise CannotMeasure(str(error)) from error
    return [
        row("daemon: load time of its engine alone, without measuring speeds", load_s, "s"),
        *rows_of("daemon", seen, load_s, hang_s),
        row("daemon: the same process lives after all blows", lives, "", bar=1, sense="=="),
    ]


async def blow(door: Door, daemon: int, name: str, seen: Blows, rng: random.Random) -> None:
    told = [Told() for _ in range(SLOTS)]
    asked = [asyncio.create_task(door.ask(prompt(rng, 32), ENDLESS, each)) for each in told]
    async with asyncio.timeout(ANSWERS_S):
        while not all(each.pieces for each in told):
            await asyncio.sleep(0.01)
    await asyncio.sleep(rng.uniform(0.0, 0.3))
    pid = engine_child(daemon)
    if pid is None:
        raise CannotMeasure("the daemon's engine has no child before the blow")
    running = [each for each in told if not each.whole]
    struck_s = time.monotonic()
    os.kill(pid, BLOWS[name])
    async with asyncio.timeout(ANSWERS_S):
        await asyncio.gather(*asked)
    await door.served(prompt(rng, 32))
    seen.served_s.append(time.monotonic() - struck_s)
    seen.requests += len(running)
    expected = [CAUSES[name].value]
    seen.wrong += sum(each.errors != expected or each.after > 0 or each.whole for each in running)
