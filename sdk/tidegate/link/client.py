"""The node's end of the link: dials out, registers, and comes back after every loss.

One LinkClient per gateway address. It never gives up and never restarts healthy work: a lost link touches
only the work that came through it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc

from tidegate.link.backoff import Backoff
from tidegate.link.seam import NodeService
from tidegate.link.session import LinkCredentials, LinkLost, LinkRefused, LinkSession

log = logging.getLogger(__name__)

__all__ = ["LinkClient", "LinkCredentials"]

# A link that lived this long was healthy: the next try after it starts from the shortest delay.
HEALTHY_AFTER_S = 5.0


class LinkClient:
    """Keeps one node linked to one gateway address.

    `clock` returns seconds, `rng` numbers in [0, 1). Call run() in a task of yours, then stop().
    """

    def __init__(
        self,
        service: NodeService,
        address: str,
        credentials: LinkCredentials,
        *,
        clock: Callable[[], float],
        rng: Callable[[], float],
    ) -> None:
        self._service = service
        self.address = address
        self._credentials = credentials
        self._clock = clock
        self._backoff = Backoff(rng)
        self._session: LinkSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._finishing = False

    @property
    def connected(self) -> bool:
        return self._session is not None and self._session.connected.is_set()

    async def run(self) -> None:
        """Links, and links again, until cancelled, flushed or stopped."""
        self._task = asyncio.current_task()
        while not self._finishing:
            started = self._clock()
            self._session = LinkSession(self._service, self.address, self._credentials, self._clock)
            reason = await self._one_session(self._session)
            if self._finishing:
                return
            if self._clock() - started >= HEALTHY_AFTER_S:
                self._backoff.reset()
            delay_s = self._backoff.next_delay_s()
            log.info(
                "link lost", extra={"gateway": self.address, "reason": reason, "retry_s": round(delay_s, 2)}
            )
            await asyncio.sleep(delay_s)

    async def _one_session(self, session: LinkSession) -> str:
        """Runs one session to its end and returns why it ended."""
        try:
            await session.run()
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        except (LinkLost, LinkRefused) as error:
            return str(error)
        except TimeoutError:
            return "the handshake took too long"
        except asyncio.InvalidStateError:
            return "the stream had ended"  # a write came after the peer's last word
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("link session failed", extra={"gateway": self.address})
            return "internal error"
        return "ended"

    async def flush(self, grace_s: float) -> bool:
        """Ends the link once the gateway has read all that the node had to say; drain the node before.

        False when grace_s ran out first; stop() then cuts off what is left.
        """
        self._finishing = True
        task, session = self._task, self._session
        if task is None or task.done() or session is None or not session.connected.is_set():
            return True
        session.finish()
        done, _ = await asyncio.wait([task], timeout=grace_s)
        return bool(done)

    async def stop(self, grace_s: float) -> None:
        """Ends the link at once, losing what is on its way; returns within grace_s."""
        task = self._task
        if task is None or task.done():
            return
        task.cancel()
        await asyncio.wait([task], timeout=grace_s)
