from __future__ import annotations

import pytest

from serving.engines.base import EngineRefused
from serving.engines.queue import Waiting, WaitQueue
from tidegate.routing.domain import AttemptKey, Cause, InputKind, Sampling, Work


def entry(
    name: str,
    *,
    priority: int = 0,
    ttft: float | None = None,
    hard: float | None = None,
    tokens: int = 1,
) -> Waiting[str]:
    return Waiting(
        key=AttemptKey(name, 1),
        item=name,
        tokens=tokens,
        arrived_ms=0.0,
        priority=priority,
        ttft_deadline_ms=ttft,
        hard_deadline_ms=hard,
    )


def drain(queue: WaitQueue[str], now_ms: float = 0.0) -> list[str]:
    names = []
    while (waiting := queue.pop(now_ms)) is not None:
        names.append(waiting.item)
    return names


def test_order_is_priority_then_first_token_deadline_then_arrival() -> None:
    queue = WaitQueue[str](10)
    for waiting in (
        entry("late arrival without a deadline"),
        entry("deadline 50", ttft=50.0),
        entry("deadline 20", ttft=20.0),
        entry("important", priority=5),
        entry("deadline 20 again", ttft=20.0),
        entry("unimportant", priority=-1, ttft=1.0),
    ):
        queue.push(waiting)
    assert drain(queue) == [
        "important",
        "deadline 20",
        "deadline 20 again",
        "deadline 50",
        "late arrival without a deadline",
        "unimportant",
    ]


def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    queue = WaitQueue[str](1)
    queue.push(entry("a"))
    with pytest.raises(EngineRefused) as refused:
        queue.push(entry("b"))
    assert refused.value.failure.cause is Cause.OVERLOADED
    assert drain(queue) == ["a"]
    queue.push(entry("b"))
    assert drain(queue) == ["b"]


def test_free_slots_do_not_count_as_waiting() -> None:
    queue = WaitQueue[str](0)
    queue.push(entry("a"), free_slots=1)
    with pytest.raises(EngineRefused):
        queue.push(entry("b"), free_slots=1)
    assert drain(queue) == ["a"]


def test_the_same_attempt_twice_is_refused() -> None:
    queue = WaitQueue[str](5)
    queue.push(entry("a"))
    with pytest.raises(EngineRefused) as refused:
        queue.push(entry("a"))
    assert refused.value.failure.cause is Cause.FENCED
    assert len(queue) == 1


def test_expired_entries_are_never_started_and_come_out_apart() -> None:
    queue = WaitQueue[str](5)
    queue.push(entry("dead", hard=10.0))
    queue.push(entry("alive", hard=11.0))
    assert queue.pop_expired(9.9) == []
    assert drain(queue, 10.0) == ["alive"]
    assert [waiting.item for waiting in queue.pop_expired(10.0)] == ["dead"]
    assert len(queue) == 0


def test_cancel_takes_out_one_entry_once() -> None:
    queue = WaitQueue[str](5)
    for name in ("a", "b", "c"):
        queue.push(entry(name, tokens=10))
    assert AttemptKey("b", 1) in queue
    cancelled = queue.cancel(AttemptKey("b", 1))
    assert cancelled is not None
    assert cancelled.item == "b"
    assert queue.cancel(AttemptKey("b", 1)) is None
    assert queue.cancel(AttemptKey("a", 2)) is None
    assert queue.pending_tokens == 20
    assert drain(queue) == ["a", "c"]


def test_pending_tokens_follow_every_way_out() -> None:
    queue = WaitQueue[str](9)
    for index, name in enumerate("abcd"):
        queue.push(entry(name, tokens=10 + index, hard=5.0 if name == "d" else None))
    assert queue.pending_tokens == 46
    queue.pop(0.0)
    assert queue.pending_tokens == 36
    queue.pop_expired(5.0)
    assert queue.pending_tokens == 23
    assert [waiting.item for waiting in queue.clear()] == ["b", "c"]
    assert queue.pending_tokens == 0
    assert drain(queue) == []


def test_an_entry_of_work_counts_its_deadlines_from_now() -> None:
    work = Work(
        key=AttemptKey("r", 3),
        tenant="default",
        variant_digest="d",
        input_kind=InputKind.TEXT,
        input=b"x",
        sampling=Sampling(),
        max_tokens=1,
        remaining_ms=40.0,
        ttft_remaining_ms=15.0,
        priority=2,
    )
    waiting = Waiting.of(work, "item", tokens=7, now_ms=100.0)
    assert (waiting.ttft_deadline_ms, waiting.hard_deadline_ms) == (115.0, 140.0)
    assert (waiting.key, waiting.priority, waiting.tokens, waiting.arrived_ms) == (work.key, 2, 7, 100.0)


def test_a_negative_limit_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="negative"):
        WaitQueue[str](-1)
