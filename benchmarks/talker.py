"""A child of a benchmark that is talked to in JSON lines, in its own session."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any, Self

from benchmarks.processes import clean_environ


class Talker:
    """Runs `python -m MODULE ARGS...`; made by start()."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, module: str, *args: str) -> Self:
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", module, *args),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=clean_environ(),
                start_new_session=True,
                limit=1 << 24,
            )
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def hear(self) -> dict[str, Any] | None:
        """What it says next; None once it is gone."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line else None

    def kill(self) -> float:
        """SIGKILL; the time right before."""
        now_s = time.monotonic()
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        return now_s

    async def stop(self) -> None:
        if self._process.returncode is None:
            self.kill()
        await self._process.wait()


async def commands() -> asyncio.StreamReader:
    """Our own stdin, for the child's side."""
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


class LagWatch:
    """How late this process's own event loop was: what it adds to a figure is not the system's."""

    INTERVAL_S = 0.02

    def __init__(self) -> None:
        self.worst_ms = 0.0

    async def run(self) -> None:
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(self.INTERVAL_S)
            self.worst_ms = max(self.worst_ms, (time.monotonic() - before_s - self.INTERVAL_S) * 1000)

    def take(self) -> float:
        """The worst since the last call, in ms."""
        worst_ms, self.worst_ms = self.worst_ms, 0.0
        return worst_ms


def say(message: dict[str, Any]) -> None:
    """To the benchmark, at once."""
    print(json.dumps(message), flush=True)
