"""Outputs on their way from the sequences to the one consumer of steps()."""

from __future__ import annotations

import asyncio

from tidegate.link.outbox import merge
from tidegate.routing.domain import AttemptKey, SequenceOutput, StepBatch


class Outbox:
    """Holds at most one output a sequence: what comes before the consumer looks is joined."""

    def __init__(self) -> None:
        self._outputs: dict[AttemptKey, SequenceOutput] = {}
        self._filled = asyncio.Event()
        self._closed = False

    def put(self, output: SequenceOutput) -> None:
        earlier = self._outputs.get(output.key)
        self._outputs[output.key] = output if earlier is None else merge(earlier, output)
        self._filled.set()

    def drop(self, key: AttemptKey) -> None:
        self._outputs.pop(key, None)

    def close(self) -> None:
        """take() gives what is left, then None."""
        self._closed = True
        self._filled.set()

    async def take(self) -> StepBatch | None:
        """All outputs since the last call, waiting for the first; None when closed and empty."""
        while not self._outputs:
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()
        outputs = tuple(self._outputs.values())
        self._outputs.clear()
        return StepBatch(outputs)
