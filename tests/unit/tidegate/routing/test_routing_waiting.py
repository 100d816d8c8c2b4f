"""Who is next: priority with a floor for the lower ones, fairness by tokens, deadlines, shedding."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tidegate.routing.waiting import FairQueue, Ticket


def ticket(
    number: int,
    tenant: str = "a",
    *,
    tokens: float = 100.0,
    priority: int = 0,
    start_by_s: float = 100.0,
    leave_by_s: float = 100.0,
    lane: str = "any",
) -> Ticket:
    return Ticket(number, tenant, lane, tokens, 0.0, start_by_s, leave_by_s, priority)


def filled(*tickets: Ticket, limit: int = 1000) -> FairQueue:
    queue = FairQueue(limit)
    for each in tickets:
        assert queue.push(each) is None
    return queue


def served(queue: FairQueue, count: int, now_s: float = 0.0) -> list[Ticket]:
    order = []
    for _ in range(count):
        head = queue.heads(now_s)[0]
        queue.take(head)
        order.append(head)
    return order


def test_a_tenant_is_served_by_deadline_and_who_is_late_comes_last() -> None:
    queue = filled(
        ticket(1, start_by_s=9.0),
        ticket(2, start_by_s=2.0, leave_by_s=50.0),
        ticket(3, start_by_s=5.0),
        ticket(4, start_by_s=1.0, leave_by_s=40.0),
    )
    assert [t.number for t in served(queue, 4, now_s=3.0)] == [3, 1, 4, 2]


def test_tenants_share_by_tokens_not_by_requests() -> None:
    """A tenant with three hundred long requests against one with short ones that came after them."""
    flood = [ticket(n, "flood", tokens=1000.0) for n in range(300)]
    light = [ticket(1000 + n, "light", tokens=100.0) for n in range(300)]
    tokens: Counter[str] = Counter()
    for each in served(filled(*flood, *light), 110):
        tokens[each.tenant] += int(each.tokens)
    assert abs(tokens["flood"] - tokens["light"]) <= 1000


def test_one_that_comes_late_neither_waits_for_the_flood_nor_gets_its_past_back() -> None:
    queue = filled(*(ticket(n, "flood") for n in range(200)))
    served(queue, 100)
    for n in range(50):
        queue.push(ticket(1000 + n, "late"))
    names = [t.tenant for t in served(queue, 20)]
    assert names.count("late") in (10, 11)


def test_what_an_answer_really_cost_is_settled() -> None:
    queue = filled(*(ticket(n, name) for n, name in enumerate("ab" * 30)))
    first = next(t for t in served(queue, 2) if t.tenant == "a")
    queue.settle(first, 1100.0)
    assert [t.tenant for t in served(queue, 9)] == ["b"] * 9


def test_higher_priority_first_but_nobody_starves() -> None:
    """An endless flood above: the low one gets the floor's share of tokens, so its turn comes."""
    queue = FairQueue(1000, floor_share=0.05)
    queue.push(ticket(1, "low", tokens=200.0, priority=-10))
    position = None
    for n in range(200):
        queue.push(ticket(10 + n, "high", priority=10))
        head = queue.heads(0.0)[0]
        queue.take(head)
        if head.tenant == "low":
            position = n
            break
    assert position == 40  # 200 tokens owed at 5 of every 100

    strict = FairQueue(1000, floor_share=1e-9)  # the control: without a floor it would wait for ever
    strict.push(ticket(1, "low", priority=-10))
    for n in range(200):
        strict.push(ticket(10 + n, "high", priority=10))
        strict.take(strict.heads(0.0)[0])
    strict.push(ticket(999, "high", priority=10))
    assert strict.heads(0.0)[0].tenant == "high"


def test_the_floor_does_not_turn_priorities_round() -> None:
    low = [ticket(n, "low", priority=0) for n in range(200)]
    high = [ticket(1000 + n, "high", priority=5) for n in range(200)]
    names = Counter(t.tenant for t in served(filled(*low, *high), 100))
    assert 3 <= names["low"] <= 6


def test_the_lowest_priority_is_shed_first_and_of_it_the_longest_queue() -> None:
    queue = filled(
        ticket(1, "x", priority=1),
        ticket(2, "few", priority=0),
        ticket(3, "many", priority=0, start_by_s=5.0),
        ticket(4, "many", priority=0, start_by_s=9.0),
        limit=4,
    )
    shed = queue.push(ticket(5, "x", priority=1))
    assert shed is not None
    assert shed.number == 4
    own = queue.push(ticket(6, "last", priority=-1))
    assert own is not None
    assert own.number == 6
    assert len(queue) == 4


def test_lanes_do_not_block_each_other() -> None:
    queue = filled(ticket(1, lane="edge", start_by_s=1.0), ticket(2, lane="cloud"), ticket(3, lane="edge"))
    assert [t.number for t in queue.heads(0.0)] == [1, 2]


def test_what_goes_before_a_newcomer() -> None:
    queue = filled(
        ticket(1, "a", start_by_s=1.0),
        ticket(2, "a", start_by_s=99.0),
        *(ticket(10 + n, "b") for n in range(50)),
        ticket(3, "c", priority=1),
        ticket(4, "a", lane="other"),
    )
    new = ticket(100, "a", start_by_s=50.0)
    # Its own earlier one, the higher priority's, and of the other tenant as much as it gets itself.
    assert queue.ahead_tokens(new) == 100.0 + 100.0 + 200.0
    assert queue.ahead_tokens(replace(new, lane="empty")) == 0.0


ASKED = st.tuples(
    st.sampled_from("abc"),
    st.integers(-2, 2),
    st.sampled_from(["x", "y"]),
    st.floats(1, 1e4),
    st.floats(0, 9),
)


@given(st.lists(ASKED, max_size=60), st.integers(0, 20))
def test_every_ticket_is_served_or_shed_once_and_memory_is_bounded(asked: list, limit: int) -> None:  # type: ignore[type-arg]
    queue = FairQueue(limit)
    gone: list[int] = []
    for number, (tenant, priority, lane, tokens, due_s) in enumerate(asked):
        new = ticket(number, tenant, tokens=tokens, priority=priority, lane=lane, start_by_s=due_s)
        shed = queue.push(new)
        gone += [] if shed is None else [shed.number]
        assert len(queue) <= limit
        if number % 3 == 2 and len(queue):
            gone += [t.number for t in served(queue, 1, now_s=4.0)]
    gone += [t.number for t in served(queue, len(queue), now_s=8.0)]
    assert sorted(gone) == list(range(len(asked)))
    assert not queue.heads(0.0)
