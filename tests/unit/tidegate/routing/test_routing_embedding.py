"""Texts and vectors on their way, and the events of a request put together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.routing.domain import (
    Accepted,
    BudgetOutcome,
    Chunk,
    Finished,
    FinishReason,
    Restarted,
    Route,
    Tier,
    Timings,
    Usage,
)
from tidegate.routing.embedding import (
    MAX_INPUTS,
    Collector,
    Embedded,
    pack_texts,
    pack_vector,
    unpack_texts,
    unpack_vectors,
)

ROUTE = Route("n1", "kitchen", Tier.EDGE, "m", "d")
DONE = Finished(FinishReason.STOP, Usage(7), Timings(), BudgetOutcome.NONE, attempts=1)
texts = st.lists(st.text(max_size=20), min_size=1, max_size=5)


@given(texts)
def test_texts_come_back(given_texts: list[str]) -> None:
    assert unpack_texts(pack_texts(given_texts)) == tuple(given_texts)


TOO_MANY = pack_texts(["a"] * (MAX_INPUTS + 1))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'["a",1]', b"\xff", TOO_MANY])
def test_what_is_no_list_of_texts_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        unpack_texts(data)


def test_vectors_come_back_as_far_as_32_bits_go() -> None:
    packed = pack_vector((0.5, -0.25)) + pack_vector((1.0, 2.0))
    assert unpack_vectors(packed, 2) == [(0.5, -0.25), (1.0, 2.0)]


@pytest.mark.parametrize(("data", "count"), [(b"", 1), (b"1234", 0), (b"12345", 1), (b"1" * 12, 2)])
def test_bytes_that_are_no_vectors_are_refused(data: bytes, count: int) -> None:
    with pytest.raises(ValueError, match="are no"):
        unpack_vectors(data, count)


def test_events_are_put_together_and_a_restart_begins_again() -> None:
    collector = Collector()
    first = Chunk(1, 0, 1, "", vectors=pack_vector((9.0,)))
    again = Chunk(2, 0, 2, "", vectors=pack_vector((1.0,)) + pack_vector((2.0,)))
    events = [Accepted(ROUTE), first, Restarted(2, "NODE_LOST", ROUTE), again]
    assert [collector.take(event) for event in events] == [None] * 4
    assert collector.take(DONE) == Embedded(((1.0,), (2.0,)), Usage(7), ROUTE)
