"""The ONE attempt primitive: one try on one node, ending in a typed outcome.

Retry before the first token is a composition of it (see dispatcher.py); hedging, escalation and continuation
are others to come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.upstream import AttemptStream, NotLinked
from tidegate.routing.domain import (
    Cause,
    Failure,
    Finish,
    FinishReason,
    FirstToken,
    SequenceOutput,
    Usage,
    Work,
)


class Upstream(Protocol):
    """What an attempt needs: implemented by gateway.upstream.LinkRegistry."""

    def open(self, node_id: str, work: Work) -> AttemptStream:
        """Never blocks. Raises NotLinked."""
        ...


SLOW_CONSUMER_SHARE = 0.5
# A timer that fires this late says that this process stood still, not the node.
OVERSLEPT_S = 0.25
SECOND_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class StallLimits:
    """How long an attempt may stand still, in seconds, before it counts as stalled.

    `first_s` bounds the wait for the first output beyond the predicted time to it; `between_s` the wait
    between outputs. `predicted_factor` times the prediction is always allowed. A node that works for others
    meanwhile is not stalled: behind it an attempt may wait `busy_s` for its first output.
    """

    first_s: float = 5.0
    between_s: float = 10.0
    busy_s: float = 120.0
    predicted_factor: float = 5.0


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """How one try ended; `ttft_s` and `duration_s` count from the attempt's own start."""

    result: FinishReason | Failure
    usage: Usage
    tokens: int
    first_token: FirstToken | None
    ttft_s: float | None
    duration_s: float


class Attempt:
    """Runs once. `deadline_s` is the request's hard deadline on `clock`.

    open() sends the work, outputs() reads what comes of it, close() frees the sequence on the node; all three
    are called once, close() whatever happened. `outcome` is set when outputs() has ended by itself, None when
    it was closed early. `consumer_s` is the time that its reader took with the outputs.
    """

    def __init__(
        self,
        upstream: Upstream,
        node_id: str,
        work: Work,
        *,
        clock: Callable[[], float],
        limits: StallLimits,
        predicted_ttft_ms: float = 0.0,
        deadline_s: float | None = None,
        last_output_s: Callable[[], float] = lambda: float("-inf"),
    ) -> None:
        self._upstream = upstream
        self.node_id = node_id
        self.work = work
        self._clock = clock
        self._deadline_s = deadline_s
        self._last_output_s = last_output_s
        self._busy_s = limits.busy_s
        self._between_s = limits.between_s
        self._first_s = limits.first_s + limits.predicted_factor * predicted_ttft_ms / 1000
        self.started_s = clock()
        self.tokens = 0
        self.first_token: FirstToken | None = None
        self.ttft_s: float | None = None
        self.consumer_s = 0.0
        self.waiting_since_s = self.started_s
        self.outcome: AttemptOutcome | None = None
        self._stream: AttemptStream | None = None

    @property
    def consumer_was_slow(self) -> bool:
        """True when most of the time after the first token was its reader's: it tells nothing of the node."""
        answering_s = self._clock() - self.started_s - (self.ttft_s or 0.0)
        return self.consumer_s > SLOW_CONSUMER_SHARE * answering_s

    def open(self) -> None:
        """Hands the work to the link; never blocks. A node without link is an outcome, not an error."""
        try:
            self._stream = self._upstream.open(self.node_id, self.work)
        except NotLinked:
            self._end(Failure(Cause.NODE_LOST, "no link to the node"), Usage())

    async def outputs(self) -> AsyncGenerator[SequenceOutput, None]:
        """The node's outputs in order."""
        while self.outcome is None:
            assert self._stream is not None, "outputs() before open()"
            output = await self._next(self._stream)
            self._take(output)
            if output.count or output.text:
                handed_s = self._clock()
                try:
                    yield output
                finally:  # also of a reader who gives up with an output in hand
                    self.consumer_s += self._clock() - handed_s
            if output.finish is not None:
                self._end(output.finish.result, output.finish.usage)

    def close(self) -> None:
        """Cancels what still runs on the node."""
        if self._stream is not None:
            self._stream.close()

    async def _next(self, stream: AttemptStream) -> SequenceOutput:
        self.waiting_since_s = self._clock()
        limit_s = self._between_s if self.tokens else self._first_s
        failure = Failure(Cause.STALLED, f"nothing came for {limit_s:.1f} s")
        if self._deadline_s is not None and self._deadline_s - self._clock() < limit_s:
            limit_s = max(0.0, self._deadline_s - self._clock())
            failure = Failure(Cause.DEADLINE, "the request's deadline passed")
        try:
            while True:
                try:
                    return await self._within(stream, limit_s)
                except TimeoutError:
                    if not self._only_waits_its_turn():
                        raise
        except TimeoutError:
            return SequenceOutput(key=self.work.key, first_index=self.tokens, finish=Finish(failure))

    def _only_waits_its_turn(self) -> bool:
        """Before its first token, while the node works for others: it waits behind them, nothing stalled."""
        now_s = self._clock()
        if self.tokens or now_s - self.started_s > self._busy_s:
            return False
        if self._deadline_s is not None and now_s >= self._deadline_s:
            return False
        return self._last_output_s() > self.waiting_since_s

    async def _within(self, stream: AttemptStream, limit_s: float) -> SequenceOutput:
        """Raises TimeoutError. A loop that stood still itself gives what has come meanwhile a chance."""
        started_s = self._clock()
        try:
            async with asyncio.timeout(limit_s):
                return await stream.next()
        except TimeoutError:
            if self._clock() - started_s < limit_s + OVERSLEPT_S:
                raise
        async with asyncio.timeout(SECOND_LOOK_S):
            return await stream.next()

    def _take(self, output: SequenceOutput) -> None:
        self.tokens += output.count
        if output.first_token is not None:
            self.first_token = output.first_token
        if output.count and self.ttft_s is None:
            self.ttft_s = self._clock() - self.started_s

    def _end(self, result: FinishReason | Failure, usage: Usage) -> None:
        self.outcome = AttemptOutcome(
            result=result,
            usage=usage,
            tokens=self.tokens,
            first_token=self.first_token,
            ttft_s=self.ttft_s,
            duration_s=self._clock() - self.started_s,
        )
