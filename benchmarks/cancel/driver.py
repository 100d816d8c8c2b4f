"""The benchmark's hand on its client processes: start, tell, kill."""

from __future__ import annotations

import asyncio

from benchmarks.talker import Talker

EVENT_S = 60.0


class ClientLost(Exception):
    """A client said something unexpected or nothing."""


class AnswerEnded(ClientLost):
    """The answer came to its natural end before the moment to drop it."""


class ClientProcess:
    """One client in its own session. `kind` is grpc or http."""

    def __init__(self, talker: Talker) -> None:
        self._talker = talker

    @classmethod
    async def start(cls, kind: str, address: str) -> ClientProcess:
        """Returns once it is ready to go."""
        client = cls(await Talker.start("benchmarks.cancel.client", kind, address))
        await client.event("ready")
        return client

    def go(self, prompt: str, max_tokens: int) -> None:
        self._talker.tell({"go": {"prompt": prompt, "max_tokens": max_tokens}})

    async def event(self, wanted: str) -> float:
        """Waits for an event, over others; its time. Raises ClientLost, or AnswerEnded."""
        async with asyncio.timeout(EVENT_S):
            while (said := await self._talker.hear()) is not None:
                if said["event"] == wanted:
                    return float(said["at"])
                if said["event"] == "ended":
                    if said["why"] == "finished":
                        raise AnswerEnded
                    raise ClientLost(said["why"])
        raise ClientLost(f"the client process is gone while {wanted!r} was waited for")

    async def cancel(self) -> float:
        """Drops the running stream; the time right before it did."""
        self._talker.tell({"cancel": True})
        return await self.event("cancelled")

    def kill(self) -> float:
        """SIGKILL; the time right before."""
        return self._talker.kill()

    async def stop(self) -> None:
        await self._talker.stop()
