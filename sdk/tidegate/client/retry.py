"""When a call is tried again: pure policy, shared by the async and the sync client.

Only a call of which no message was received is ever tried again, only on UNAVAILABLE and on a CANCELLED that
the server sent, within the caller's deadline, a number of attempts, and a budget that all calls of a client
share, so that retries cannot multiply an overload.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidegate.client.errors import Cancelled, DeadlineExceeded, TidegateError, Unavailable
from tidegate.routing.domain import Code

Clock = Callable[[], float]
Uniform = Callable[[], float]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` counts the first try too; 1 never retries.

    The n-th pause is drawn evenly from [0, min(max_ms, base_ms * 2**n)]; a server's own word
    (RetryInfo) counts instead when it is at most `max_retry_after_ms`, a longer one is passed to the caller.
    `budget_tokens` retries may be spent at once; each successful call gives `budget_refill` back.
    """

    attempts: int = 6
    base_ms: float = 50.0
    max_ms: float = 2_000.0
    max_retry_after_ms: float = 2_000.0
    budget_tokens: float = 64.0
    budget_refill: float = 0.2

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError("attempts must be at least 1")
        if min(self.base_ms, self.max_ms, self.max_retry_after_ms) < 0:
            raise ValueError("durations must not be negative")


DEFAULT_RETRY = RetryPolicy()


class RetryBudget:
    """Tokens for retries, shared by all calls of a client."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._tokens = policy.budget_tokens

    def spend(self) -> bool:
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def refill(self) -> None:
        self._tokens = min(self._policy.budget_tokens, self._tokens + self._policy.budget_refill)


class CallPlan:
    """One call's tries. `deadline_s` is the time from now that all tries and pauses together may take."""

    def __init__(
        self,
        policy: RetryPolicy,
        budget: RetryBudget,
        *,
        deadline_s: float | None,
        clock: Clock,
        uniform: Uniform,
    ) -> None:
        self._policy = policy
        self._budget = budget
        self._clock = clock
        self._uniform = uniform
        self._deadline_at = None if deadline_s is None else clock() + deadline_s
        self.attempts = 0

    def start_attempt(self) -> float | None:
        """Seconds this try may take, None for no limit. Raises DeadlineExceeded when none are left."""
        remaining_s = self.remaining_s()
        if remaining_s is not None and remaining_s <= 0.0:
            raise DeadlineExceeded("the deadline is over", code=Code.DEADLINE_EXCEEDED)
        self.attempts += 1
        return remaining_s

    def remaining_s(self) -> float | None:
        return None if self._deadline_at is None else self._deadline_at - self._clock()

    def pause_s(self, error: TidegateError) -> float | None:
        """Seconds to wait before the next try, or None when the error is the caller's to see."""
        if not self._may_pass(error) or self.attempts >= self._policy.attempts:
            return None
        if error.retry_after_ms is not None:
            if error.retry_after_ms > self._policy.max_retry_after_ms:
                return None
            # Never earlier than the server asks, and not all clients in the same instant.
            pause_ms = error.retry_after_ms * (1.0 + 0.1 * self._uniform())
        else:
            ceiling_ms = min(self._policy.max_ms, self._policy.base_ms * 2 ** (self.attempts - 1))
            pause_ms = ceiling_ms * self._uniform()
        remaining_s = self.remaining_s()
        if remaining_s is not None and pause_ms / 1_000 >= remaining_s:
            return None
        return pause_ms / 1_000 if self._budget.spend() else None

    def _may_pass(self, error: TidegateError) -> bool:
        """A retry may also meet its own predecessor, which the gateway has not seen die yet."""
        if error.reason == "DUPLICATE_REQUEST_ID":
            return self.attempts > 1
        return isinstance(error, Unavailable | Cancelled)

    def succeeded(self) -> None:
        """The first message arrived: the count starts anew and the budget recovers."""
        self.attempts = 0
        self._budget.refill()
