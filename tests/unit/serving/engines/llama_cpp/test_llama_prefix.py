from __future__ import annotations

import numpy as np

from serving.engines.llama_cpp.prefix import SlotTable, Tokens, common_prefix

A, B, C, D = (bytes([n]) * 16 for n in range(4))


def tokens(*values: int) -> Tokens:
    return np.array(values, np.int32)


def run(
    table: SlotTable, prompt: Tokens, names: tuple[bytes, ...] = (), tenant: str = "t"
) -> tuple[int, int]:
    """A sequence that is prefilled and leaves; (slot, cached)."""
    slot, cached = table.take(prompt, tenant, names)
    table.prefilled(slot, names)
    table.release(slot, prompt)
    return slot.index, cached


def test_common_prefix() -> None:
    assert common_prefix(tokens(1, 2, 3), tokens(1, 2, 4)) == 2
    assert common_prefix(tokens(1, 2), tokens(1, 2, 4)) == 2
    assert common_prefix(tokens(), tokens(1)) == 0


def test_the_slot_with_the_longest_prefix_is_taken() -> None:
    table = SlotTable(3)
    assert run(table, tokens(1, 2, 3, 4)) == (0, 0)
    assert run(table, tokens(1, 9, 9, 9)) == (0, 1)
    assert run(table, tokens(5, 6, 7)) == (1, 0)
    assert run(table, tokens(5, 6, 8)) == (1, 2)
    assert run(table, tokens(1, 9, 9, 8)) == (0, 3)


def test_the_last_prompt_token_is_always_computed() -> None:
    table = SlotTable(1)
    run(table, tokens(1, 2, 3))
    assert run(table, tokens(1, 2, 3)) == (0, 2)
    assert run(table, tokens(1)) == (0, 0)


def test_tenants_do_not_share() -> None:
    table = SlotTable(2)
    run(table, tokens(1, 2, 3), tenant="a")
    assert run(table, tokens(1, 2, 3), tenant="b") == (1, 0)
    assert run(table, tokens(1, 2, 3), tenant="a") == (0, 2)


def test_busy_slots_are_left_alone_and_neighbours_preferred() -> None:
    table = SlotTable(4)
    for start in (10, 20, 30, 40):
        table.take(tokens(start, 1), "t", ())
    assert table.idle == 0
    for slot in table.slots[1:]:
        table.release(slot, tokens(slot.index, 1))
    assert table.take(tokens(10, 1), "t", ())[0].index == 1


def test_without_neighbours_the_least_recently_used_slot_is_given_up() -> None:
    table = SlotTable(3)
    for start in (10, 20, 30):
        run(table, tokens(start, 1))
    run(table, tokens(10, 2))
    assert run(table, tokens(99, 1)) == (1, 0)


def test_names_are_held_until_their_last_slot_drops_them() -> None:
    table = SlotTable(2)
    slot, _ = table.take(tokens(1, 2, 3), "t", (A, B))
    assert table.names.take_changes() == ([], [])
    table.prefilled(slot, (A, B))
    held, evicted = table.names.take_changes()
    assert (set(held), evicted) == ({A, B}, [])
    other, _ = table.take(tokens(1, 2, 9), "t", (A, C))
    table.prefilled(other, (A, C))
    assert table.names.take_changes() == ([C], [])
    table.release(slot, tokens(1, 2, 3))
    table.release(other, tokens(1, 2, 9))
    again, cached = table.take(tokens(1, 2, 3, 4), "t", (A, D))
    assert (again, cached) == (slot, 3)
    assert table.names.take_changes() == ([], [B])


def test_a_name_that_comes_and_goes_between_reports_is_not_reported() -> None:
    table = SlotTable(1)
    run(table, tokens(1, 2, 3), (A,))
    table.forget(table.slots[0])
    assert table.names.take_changes() == ([], [])
    assert run(table, tokens(1, 2, 3)) == (0, 0)
