"""A node's warm blocks: the index equals the node's own set as long as its digests agree."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidegate.routing.domain import CacheDelta
from tidegate.routing.prefix import names_digest
from tidegate.routing.prefix_index import PrefixIndex

NAMES = [bytes([i]) * 16 for i in range(1, 13)]
subsets = st.sets(st.sampled_from(NAMES))


@given(start=subsets, steps=st.lists(st.tuples(subsets, subsets), max_size=8))
def test_reports_in_order_keep_the_index_equal_to_the_nodes_set(
    start: set[bytes], steps: list[tuple[set[bytes], set[bytes]]]
) -> None:
    index, held = PrefixIndex(), set(start)
    assert index.apply(CacheDelta(tuple(held), (), names_digest(held), full=True))
    for new, gone in steps:
        held = (held - gone) | new
        assert index.apply(CacheDelta(tuple(new), tuple(gone), names_digest(held)))
        assert index.view() == held


def test_a_missed_report_shows_and_the_full_set_heals_it() -> None:
    index = PrefixIndex()
    index.apply(CacheDelta(tuple(NAMES[:2]), (), names_digest(NAMES[:2]), full=True))
    assert not index.apply(CacheDelta((NAMES[3],), (), names_digest(NAMES[:4])))  # NAMES[2] was missed
    assert index.apply(CacheDelta(tuple(NAMES[:4]), (), names_digest(NAMES[:4]), full=True))
    assert index.view() == frozenset(NAMES[:4])


def test_more_names_than_fit_are_known_in_part_without_asking_again_and_again() -> None:
    index = PrefixIndex(limit=4)
    assert index.apply(CacheDelta(tuple(NAMES[:6]), (), names_digest(NAMES[:6]), full=True))
    assert len(index.view()) == 4
    assert index.apply(CacheDelta((NAMES[7],), (), names_digest([*NAMES[:6], NAMES[7]])))
    assert len(index.view()) == 4
    assert index.apply(CacheDelta((NAMES[0],), (), names_digest(NAMES[:1]), full=True))
    assert not index.apply(CacheDelta((NAMES[1],), (), digest=7))  # whole again, so digests count again
