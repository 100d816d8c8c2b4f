from __future__ import annotations

from serving.node.fence import FenceTable
from tidegate.routing.domain import AttemptKey


def test_seen_attempts_and_lower_ones_are_refused() -> None:
    table = FenceTable(10)
    assert not table.refuses(AttemptKey("r", 1))
    table.seen(AttemptKey("r", 2))
    assert [table.refuses(AttemptKey("r", number)) for number in (1, 2, 3)] == [True, True, False]
    assert not table.refuses(AttemptKey("s", 1))


def test_a_fence_lets_its_own_number_through() -> None:
    table = FenceTable(10)
    table.raise_to(AttemptKey("r", 3))
    assert [table.refuses(AttemptKey("r", number)) for number in (2, 3)] == [True, False]


def test_a_late_lower_fence_does_not_lower_it() -> None:
    table = FenceTable(10)
    table.seen(AttemptKey("r", 5))
    table.raise_to(AttemptKey("r", 2))
    assert table.refuses(AttemptKey("r", 5))


def test_the_table_is_bounded_and_forgets_the_least_recently_touched() -> None:
    table = FenceTable(2)
    table.seen(AttemptKey("a", 1))
    table.seen(AttemptKey("b", 1))
    table.seen(AttemptKey("a", 2))
    table.seen(AttemptKey("c", 1))
    assert len(table) == 2
    assert table.refuses(AttemptKey("a", 2))
    assert table.refuses(AttemptKey("c", 1))
    assert not table.refuses(AttemptKey("b", 1))
