"""The benchmark's hand on its client processes: start, tell, kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from benchmarks.processes import clean_environ

EVENT_S = 60.0


class ClientLost(Exception):
    """A client said something unexpected or nothing."""


class ClientProcess:
    """One client in its own session. `kind` is grpc or http."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, kind: str, address: str) -> ClientProcess:
        """Returns once it is ready to go."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "benchmarks.cancel.client", kind, address),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=clean_environ(),
            start_new_session=True,
        )
        client = cls(process)
        await client.event("ready")
        return client

    def go(self, prompt: str, max_tokens: int) -> None:
        self._tell({"go": {"prompt": prompt, "max_tokens": max_tokens}})

    async def event(self, wanted: str) -> float:
        """Waits for an event, over others; its time. Raises ClientLost when the stream ended instead."""
        assert self._process.stdout is not None
        async with asyncio.timeout(EVENT_S):
            while line := await self._process.stdout.readline():
                said = json.loads(line)
                if said["event"] == wanted:
                    return float(said["at"])
                if said["event"] == "ended":
                    raise ClientLost(said["why"])
        raise ClientLost(f"the client process is gone while {wanted!r} was waited for")

    async def cancel(self) -> float:
        """Drops the running stream; the time right before it did."""
        self._tell({"cancel": True})
        return await self.event("cancelled")

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

    def _tell(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
