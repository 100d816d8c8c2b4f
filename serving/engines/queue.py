"""The bounded waiting queue in front of an engine's slots: pure, time is an argument.

Order: higher priority first, then the earlier time-to-first-token deadline, then arrival. It imports the
standard library and tidegate.routing only, so an engine's child process can use it too.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from serving.engines.base import EngineRefused
from tidegate.routing.domain import AttemptKey, Cause, Failure, Work

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Waiting(Generic[T]):
    """One waiting sequence. Times are milliseconds on the caller's clock; None is no deadline.

    `item` is the engine's own record of the sequence, `tokens` its input length.
    """

    key: AttemptKey
    item: T
    tokens: int
    arrived_ms: float
    priority: int = 0
    ttft_deadline_ms: float | None = None
    hard_deadline_ms: float | None = None

    @classmethod
    def of(cls, work: Work, item: T, *, tokens: int, now_ms: float) -> Waiting[T]:
        """The entry of `work` received at `now_ms`."""
        return cls(
            key=work.key,
            item=item,
            tokens=tokens,
            arrived_ms=now_ms,
            priority=work.priority,
            ttft_deadline_ms=None if work.ttft_remaining_ms is None else now_ms + work.ttft_remaining_ms,
            hard_deadline_ms=None if work.remaining_ms is None else now_ms + work.remaining_ms,
        )

    def expired(self, now_ms: float) -> bool:
        return self.hard_deadline_ms is not None and self.hard_deadline_ms <= now_ms


@dataclass(order=True, slots=True)
class _Ranked(Generic[T]):
    rank: tuple[int, float, int]
    entry: Waiting[T] = field(compare=False)


class WaitQueue(Generic[T]):
    """At most `limit` sequences wait here, beyond those that free slots take at the next step."""

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError("limit must not be negative")
        self._limit = limit
        self._ranked: list[_Ranked[T]] = []
        self._keys: set[AttemptKey] = set()
        self._arrivals = count()
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._ranked)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[Waiting[T]]:
        """All entries, next one first."""
        return (ranked.entry for ranked in self._ranked)

    @property
    def pending_tokens(self) -> int:
        """Sum of the waiting sequences' `tokens`."""
        return self._tokens

    def push(self, entry: Waiting[T], *, free_slots: int = 0) -> None:
        """Adds `entry`. Raises EngineRefused: OVERLOADED when full, FENCED when its key waits already.

        `free_slots` is how many sequences the next step can start: those do not count as waiting.
        """
        if entry.key in self._keys:
            raise EngineRefused(Failure(Cause.FENCED, "this attempt is waiting already"))
        if len(self._ranked) >= self._limit + free_slots:
            raise EngineRefused(Failure(Cause.OVERLOADED, f"{len(self._ranked)} sequences wait already"))
        deadline = math.inf if entry.ttft_deadline_ms is None else entry.ttft_deadline_ms
        insort(self._ranked, _Ranked((-entry.priority, deadline, next(self._arrivals)), entry))
        self._keys.add(entry.key)
        self._tokens += entry.tokens

    def peek(self, now_ms: float) -> Waiting[T] | None:
        """The entry that `pop` would give."""
        return next((r.entry for r in self._ranked if not r.entry.expired(now_ms)), None)

    def pop(self, now_ms: float) -> Waiting[T] | None:
        """Takes the next entry whose hard deadline has not passed; None when there is none."""
        entry = self.peek(now_ms)
        if entry is not None:
            self._remove(entry)
        return entry

    def pop_expired(self, now_ms: float) -> list[Waiting[T]]:
        """Takes every entry whose hard deadline has passed, for its DEADLINE failure."""
        expired = [entry for entry in self if entry.expired(now_ms)]
        for entry in expired:
            self._remove(entry)
        return expired

    def cancel(self, key: AttemptKey) -> Waiting[T] | None:
        """Takes the entry of `key` out; None when it does not wait here."""
        if key not in self._keys:
            return None
        entry = next(entry for entry in self if entry.key == key)
        self._remove(entry)
        return entry

    def clear(self) -> list[Waiting[T]]:
        """Takes all entries out, next one first."""
        entries = list(self)
        self._ranked.clear()
        self._keys.clear()
        self._tokens = 0
        return entries

    def _remove(self, entry: Waiting[T]) -> None:
        self._ranked = [ranked for ranked in self._ranked if ranked.entry is not entry]
        self._keys.discard(entry.key)
        self._tokens -= entry.tokens
