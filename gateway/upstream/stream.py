"""What comes back for one attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tidegate.routing.domain import AttemptKey, Failure, Finish, SequenceOutput

# The consumer gives credit back in handfuls, so that it does not cost a message per chunk; with few credits
# in smaller ones, or the node would wait for the rest of a handful that cannot come.
CREDIT_BATCH = 16


class AttemptStream:
    """The outputs of one attempt, in order. One consumer.

    `credits` is what the node may send ahead. `grant` sends it more, `cancel` frees the sequence there; both
    are non-blocking.
    """

    def __init__(
        self,
        key: AttemptKey,
        credits: int,
        *,
        grant: Callable[[AttemptKey, int], None],
        cancel: Callable[[AttemptKey], None],
    ) -> None:
        self.key = key
        self._grant_after = max(1, min(CREDIT_BATCH, credits // 2))
        self._grant = grant
        self._cancel = cancel
        self._outputs: asyncio.Queue[SequenceOutput] = asyncio.Queue()
        self._consumed = 0
        self._next_index = 0
        self.ended = False

    def put(self, output: SequenceOutput) -> None:
        """Called by the session for each output of this attempt."""
        if not self.ended:
            self._outputs.put_nowait(output)
            self.ended = output.finish is not None

    def fail(self, failure: Failure) -> None:
        """Ends the attempt without the node's word, for instance when its link was lost."""
        self.put(SequenceOutput(key=self.key, first_index=self._next_index, finish=Finish(failure)))

    async def next(self) -> SequenceOutput:
        """The next output; the last one carries `finish`."""
        output = await self._outputs.get()
        self._consumed += 1
        if self._consumed >= self._grant_after and not self.ended:
            self._grant(self.key, self._consumed)
            self._consumed = 0
        self._next_index = output.first_index + output.count
        return output

    def close(self) -> None:
        """The consumer is done; an attempt that still runs is cancelled on its node."""
        if not self.ended:
            self.ended = True
            self._cancel(self.key)
