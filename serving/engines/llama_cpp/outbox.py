"""Outputs on their way from the engine to its one consumer. One event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from tidegate.routing.domain import AttemptKey, SequenceOutput, StepBatch


class Outbox:
    """Step batches in order, from which a cancelled sequence's outputs can still be taken back."""

    def __init__(self) -> None:
        self._steps: deque[tuple[SequenceOutput, ...]] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, outputs: Sequence[SequenceOutput]) -> None:
        if outputs:
            self._steps.append(tuple(outputs))
            self._changed.set()

    def take_back(self, key: AttemptKey) -> None:
        """Nothing of this sequence comes out any more."""
        left = (tuple(output for output in step if output.key != key) for step in self._steps)
        self._steps = deque(step for step in left if step)

    def close(self) -> None:
        """The batches end when what lies here has been taken."""
        self._closed = True
        self._changed.set()

    async def batches(self) -> AsyncIterator[StepBatch]:
        while True:
            while self._steps:
                yield StepBatch(self._steps.popleft())
            if self._closed:
                return
            self._changed.clear()
            await self._changed.wait()
