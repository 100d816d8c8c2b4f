"""What has been received of an answer, and the finished answer. Shared by the async and the sync client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tidegate.client.errors import StreamRestarted, TidegateError, broken_protocol
from tidegate.client.retry import Clock
from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import (
    Accepted,
    BudgetOutcome,
    Chunk,
    Explanation,
    Finished,
    FinishReason,
    GenerateEvent,
    Restarted,
    Route,
    ServeError,
    Timings,
    Usage,
)
from tidegate.wire import codec

# What iterating chunks does when the answer starts again.
OnRestart = Literal["raise", "reset"]


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `timings` are the gateway's, `ttft_ms` is this client's own (None: no token came)."""

    request_id: str
    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    budget: BudgetOutcome
    attempts: int
    route: Route | None = None
    explanation: Explanation | None = None
    token_ids: tuple[int, ...] = ()
    restarts: tuple[Restarted, ...] = ()
    ttft_ms: float | None = None
    feedback_wanted: bool = False


class Answer:
    """Takes events in and checks that no token is missing or doubled."""

    def __init__(self, request_id: str, on_restart: OnRestart, clock: Clock) -> None:
        if on_restart not in ("raise", "reset"):
            raise ValueError('on_restart must be "raise" or "reset"')
        self.request_id = request_id
        self.accepted: Accepted | None = None
        self.finished: Finished | None = None
        self.restarts: tuple[Restarted, ...] = ()
        self.route: Route | None = None
        self.ttft_ms: float | None = None
        self._on_restart = on_restart
        self._clock = clock
        self._started_at: float | None = None
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._next_index = 0
        self._voided = False

    @property
    def text(self) -> str:
        """All text received since the last restart."""
        if len(self._texts) > 1:
            self._texts = ["".join(self._texts)]
        return self._texts[0] if self._texts else ""

    def start(self) -> None:
        """The request is about to be sent for the first time."""
        if self._started_at is None:
            self._started_at = self._clock()

    def take(self, message: pb.GenerateResponse) -> list[GenerateEvent]:
        """Its events, taken into account, without those of a newer protocol. Raises InternalError."""
        events = (self._take(each) for each in (message, *message.following))
        return [event for event in events if event is not None]

    def _take(self, message: pb.GenerateResponse) -> GenerateEvent | None:
        try:
            event = codec.decode_event(message)
        except ServeError as error:
            raise broken_protocol(f"unreadable event: {error.message}", "BAD_EVENT") from error
        if isinstance(event, Chunk):
            self._take_chunk(event)
        elif isinstance(event, Accepted):
            self.accepted = event
            self.route = event.route
        elif isinstance(event, Finished):
            self.finished = event
        elif isinstance(event, Restarted):
            self.restarts = (*self.restarts, event)
            self.route = event.route
            self._voided = self._voided or self._next_index > 0
            self._texts, self._token_ids, self._next_index = [], [], 0
        return event

    def ended(self) -> None:
        """The server closed the stream without an error."""
        if self.finished is None:
            raise broken_protocol("the stream ended without a finished event", "STREAM_TRUNCATED")

    def chunk_of(self, event: GenerateEvent) -> Chunk | None:
        """What iterating chunks makes of an event.

        Raises StreamRestarted unless told to reset, or when no output had been handed out that is now void.
        """
        if isinstance(event, Restarted) and self._on_restart == "raise" and self._voided:
            raise StreamRestarted(event)
        return event if isinstance(event, Chunk) else None

    def completion(self) -> Completion:
        """The whole answer; the stream has ended."""
        finished = self.finished
        if finished is None:
            raise TidegateError("the answer is not complete yet", reason="NOT_FINISHED")
        return Completion(
            request_id=self.request_id,
            text=self.text,
            finish_reason=finished.reason,
            usage=finished.usage,
            timings=finished.timings,
            budget=finished.budget,
            attempts=finished.attempts,
            route=self.route,
            explanation=self.accepted.explanation if self.accepted else None,
            token_ids=tuple(self._token_ids),
            restarts=self.restarts,
            ttft_ms=self.ttft_ms,
            feedback_wanted=finished.feedback_wanted,
        )

    def _take_chunk(self, chunk: Chunk) -> None:
        if chunk.first_index != self._next_index:
            raise broken_protocol(
                f"a chunk starts at index {chunk.first_index} where {self._next_index} was due", "STREAM_GAP"
            )
        if self.ttft_ms is None and chunk.count > 0 and self._started_at is not None:
            self.ttft_ms = (self._clock() - self._started_at) * 1_000
        self._next_index += chunk.count
        self._texts.append(chunk.text)
        self._token_ids.extend(chunk.token_ids)
