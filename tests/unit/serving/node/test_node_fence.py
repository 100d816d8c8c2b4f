from __future__ import annotations

from serving.node.fence import FenceTable
from tidegate.routing.domain import AttemptKey


def took(table: FenceTable, key: AttemptKey) -> None:
    table.started(key)
    table.ended(key)


def test_seen_attempts_and_lower_ones_are_refused() -> None:
    table = FenceTable(10)
    assert not table.refuses(AttemptKey("r", 1))
    took(table, AttemptKey("r", 2))
    assert [table.refuses(AttemptKey("r", number)) for number in (1, 2, 3)] == [True, True, False]
    assert not table.refuses(AttemptKey("s", 1))


def test_a_fence_lets_its_own_number_through() -> None:
    table = FenceTable(10)
    table.raise_to(AttemptKey("r", 3))
    assert [table.refuses(AttemptKey("r", number)) for number in (2, 3)] == [True, False]


def test_a_late_lower_fence_does_not_lower_it() -> None:
    table = FenceTable(10)
    took(table, AttemptKey("r", 5))
    table.raise_to(AttemptKey("r", 2))
    assert table.refuses(AttemptKey("r", 5))


def test_the_table_is_bounded_and_forgets_the_least_recently_touched() -> None:
    table = FenceTable(2)
    took(table, AttemptKey("a", 1))
    took(table, AttemptKey("b", 1))
    took(table, AttemptKey("a", 2))
    took(table, AttemptKey("c", 1))
    assert len(table) == 2
    assert table.refuses(AttemptKey("a", 2))
    assert table.refuses(AttemptKey("c", 1))
    assert not table.refuses(AttemptKey("b", 1))


def test_the_id_of_a_running_attempt_is_never_forgotten() -> None:
    table = FenceTable(2)
    table.started(AttemptKey("long", 1))
    table.started(AttemptKey("long", 2))
    for number in range(10):
        took(table, AttemptKey(f"short{number}", 1))
        table.raise_to(AttemptKey(f"fenced{number}", 5))
    assert table.refuses(AttemptKey("long", 2))
    table.ended(AttemptKey("long", 1))
    took(table, AttemptKey("a", 1))
    took(table, AttemptKey("b", 1))
    assert table.refuses(AttemptKey("long", 2))
    table.ended(AttemptKey("long", 2))
    took(table, AttemptKey("c", 1))
    assert table.refuses(AttemptKey("long", 2))  # it counts as touched when it ends
    took(table, AttemptKey("d", 1))
    assert not table.refuses(AttemptKey("long", 2))
    assert len(table) == 2


def test_only_running_ids_go_beyond_the_limit() -> None:
    table = FenceTable(2)
    keys = [AttemptKey(f"r{number}", 1) for number in range(5)]
    for key in keys:
        table.started(key)
    assert all(table.refuses(key) for key in keys)
    for key in keys:
        table.ended(key)
    assert [table.refuses(key) for key in keys] == [False, False, False, True, True]
