"""What a fake gateway does with one request, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from tidegate.routing.domain import (
    Accepted,
    BudgetOutcome,
    Chunk,
    Code,
    Finished,
    FinishReason,
    GenerateEvent,
    Route,
    ServeError,
    Tier,
    Timings,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Pause:
    """Waits before the next step."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Together:
    """Several events in one message, as a client that takes `following` may get them."""

    events: tuple[GenerateEvent, ...]


@dataclass(frozen=True, slots=True)
class Hang:
    """Waits until the request is cancelled or its deadline is over."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Ends the request with an error: one of Tidegate's with details, or a bare gRPC status."""

    error: ServeError | grpc.StatusCode
    message: str = "scripted failure"

    @classmethod
    def unavailable(cls, reason: str = "NODE_LOST") -> Fail:
        return cls(ServeError(Code.UNAVAILABLE, "the node was lost", reason=reason))


Step = GenerateEvent | Together | Pause | Hang | Fail


def default_route(*, node_id: str = "fake-node", tier: Tier = Tier.EDGE, model: str = "fake") -> Route:
    return Route(
        node_id=node_id,
        node_name=node_id,
        tier=tier,
        model=model,
        variant_digest="fake:0",
        why="the only node there is",
    )


def answer(
    *texts: str,
    route: Route | None = None,
    attempt_no: int = 1,
    first_index: int = 0,
    accept: bool = True,
    finish: bool = True,
    reason: FinishReason = FinishReason.STOP,
    budget: BudgetOutcome = BudgetOutcome.NONE,
) -> tuple[Step, ...]:
    """Accepted, one chunk of one token per text, and Finished; parts of it on request."""
    steps: list[Step] = [Accepted(route or default_route())] if accept else []
    for index, text in enumerate(texts, start=first_index):
        steps.append(Chunk(attempt_no=attempt_no, first_index=index, count=1, text=text, token_ids=(index,)))
    if finish:
        steps.append(
            Finished(
                reason=reason,
                usage=Usage(prompt_tokens=1, completion_tokens=first_index + len(texts)),
                timings=Timings(queue_ms=0.5, prefill_ms=1.0, ttft_ms=2.0, tpot_ms=1.0, total_ms=3.0),
                budget=budget,
                attempts=attempt_no,
            )
        )
    return tuple(steps)
