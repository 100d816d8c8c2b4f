"""Outputs waiting to go up a link, bounded per request by credits.

Each SequenceOutput sent costs its request one credit. A request without credit keeps one merged output,
which grows at most to its own max_tokens, so a client that stopped reading holds nobody else up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from tidegate.routing.domain import AttemptKey, SequenceOutput


def merge(first: SequenceOutput, second: SequenceOutput) -> SequenceOutput:
    """One output that covers two consecutive ones of the same sequence."""
    return replace(
        first,
        count=first.count + second.count,
        token_ids=first.token_ids + second.token_ids,
        text=first.text + second.text,
        vectors=first.vectors + second.vectors,
        first_token=first.first_token or second.first_token,
        finish=second.finish,
        logprobs=first.logprobs + second.logprobs,
    )


class Outbox:
    """Collects outputs and hands out what may be sent now. `changed` is set when there may be more."""

    def __init__(self, changed: asyncio.Event | None = None) -> None:
        self._waiting: dict[AttemptKey, SequenceOutput] = {}
        self._credits: dict[AttemptKey, int] = {}
        self._changed = changed or asyncio.Event()

    def __contains__(self, key: AttemptKey) -> bool:
        """Outputs of this attempt may still come or wait here."""
        return key in self._credits

    @property
    def empty(self) -> bool:
        """Nothing waits, with or without credit."""
        return not self._waiting

    def open(self, key: AttemptKey, chunks: int) -> None:
        self._credits[key] = chunks

    def grant(self, key: AttemptKey, chunks: int) -> None:
        if key in self._credits:
            self._credits[key] += chunks
            if key in self._waiting:
                self._changed.set()

    def forget(self, key: AttemptKey) -> None:
        """The request was cancelled: nothing more of it is sent."""
        self._credits.pop(key, None)
        self._waiting.pop(key, None)

    def put(self, outputs: Sequence[SequenceOutput]) -> None:
        for output in outputs:
            if output.key not in self._credits:
                continue
            held = self._waiting.get(output.key)
            self._waiting[output.key] = output if held is None else merge(held, output)
        self._changed.set()

    def pop(self) -> tuple[SequenceOutput, ...]:
        """All outputs that may be sent now, first tokens first: everything on the way keeps this order, and
        the others' next tokens can wait a fraction of a millisecond where somebody waits for an answer.

        A final output goes without credit: it is one message and frees the request.
        """
        ready = [o for o in self._waiting.values() if o.finish is not None or self._credits[o.key] > 0]
        ready.sort(key=lambda output: output.first_token is None)
        for output in ready:
            del self._waiting[output.key]
            if output.finish is not None:
                del self._credits[output.key]
            else:
                self._credits[output.key] -= 1
        return tuple(ready)

    async def take(self) -> tuple[SequenceOutput, ...]:
        """Waits for at least one output that may be sent, and takes all of them."""
        while not (ready := self.pop()):
            self._changed.clear()
            await self._changed.wait()
        return ready
