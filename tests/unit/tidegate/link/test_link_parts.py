"""The small parts of a node's link: backoff, fragments put together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.link.backoff import Backoff
from tidegate.link.intake import (
    HEAD_BYTES,
    MAX_INPUT_BYTES,
    MAX_PARTIAL_BYTES,
    REMEMBERED_CANCELS,
    Intake,
    IntakeError,
    IntakeRefused,
)
from tidegate.routing.domain import (
    AttemptKey,
    Cause,
    InputKind,
    Sampling,
    Work,
)

KEY = AttemptKey("r1", 1)
OTHER = AttemptKey("other", 1)


def head(data: bytes, key: AttemptKey = KEY) -> Work:
    return Work(key, "default", "d", InputKind.TEXT, data, Sampling(), max_tokens=4)


# --- backoff


def test_delays_double_up_to_the_cap_and_are_never_zero() -> None:
    longest = Backoff(lambda: 1.0, base_s=0.2, cap_s=3.0)
    assert [round(longest.next_delay_s(), 2) for _ in range(6)] == [0.2, 0.4, 0.8, 1.6, 3.0, 3.0]
    shortest = Backoff(lambda: 0.0, base_s=0.2, cap_s=3.0)
    assert [round(shortest.next_delay_s(), 3) for _ in range(5)] == [0.05, 0.1, 0.2, 0.4, 0.75]


def test_a_healthy_link_starts_over_and_long_outages_do_not_overflow() -> None:
    backoff = Backoff(lambda: 1.0, base_s=0.2, cap_s=3.0)
    for _ in range(5000):
        assert backoff.next_delay_s() <= 3.0
    backoff.reset()
    assert backoff.next_delay_s() == 0.2


# --- intake


@given(data=st.binary(min_size=1, max_size=200), cuts=st.lists(st.integers(1, 60), max_size=12))
def test_an_input_in_any_pieces_comes_out_whole_and_once(data: bytes, cuts: list[int]) -> None:
    pieces, rest = [], data
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    pieces = [p for p in (*pieces, rest) if p]
    intake = Intake()
    results = [intake.begin(head(pieces[0]), len(data), 0.0), *(intake.add(KEY, p, 0.0) for p in pieces[1:])]
    assert [r is not None for r in results] == [False] * (len(pieces) - 1) + [True]
    assert results[-1] == head(data)
    assert intake.add(KEY, b"late", 0.0) is None


def test_inputs_of_several_requests_may_be_mixed() -> None:
    intake = Intake()
    assert intake.begin(head(b"aa"), 4, 0.0) is None
    assert intake.begin(head(b"b", OTHER), 2, 0.0) is None
    assert intake.add(OTHER, b"B", 0.0) == head(b"bB", OTHER)
    assert intake.add(KEY, b"AA", 0.0) == head(b"aaAA")


def test_an_empty_input_is_complete_at_once() -> None:
    assert Intake().begin(head(b""), 0, 0.0) == head(b"")


def test_a_cancel_may_come_before_its_work() -> None:
    intake = Intake()
    intake.cancel(KEY)
    assert intake.begin(head(b"x"), 1, 0.0) is None
    assert intake.begin(head(b"x"), 2, 0.0) is None
    assert intake.add(KEY, b"y", 0.0) is None
    assert intake.begin(head(b"x", OTHER), 1, 0.0) is not None


def test_a_cancel_in_the_middle_drops_the_rest() -> None:
    intake = Intake()
    intake.begin(head(b"x"), 3, 0.0)
    intake.cancel(KEY)
    assert intake.add(KEY, b"yz", 0.0) is None
    assert intake._partial == {}


def test_remembered_cancels_are_bounded() -> None:
    intake = Intake()
    for n in range(REMEMBERED_CANCELS + 10):
        intake.cancel(AttemptKey(f"r{n}", 1))
    assert len(intake._cancelled) == REMEMBERED_CANCELS
    assert intake.begin(head(b"x", AttemptKey("r0", 1)), 1, 0.0) is not None  # forgotten
    assert intake.begin(head(b"x", AttemptKey(f"r{REMEMBERED_CANCELS}", 1)), 1, 0.0) is None


def test_more_bytes_than_announced_break_the_protocol() -> None:
    intake = Intake()
    intake.begin(head(b"x"), 3, 0.0)
    with pytest.raises(IntakeError, match="2 bytes more"):
        intake.add(KEY, b"1234", 0.0)
    assert intake._partial == {}


@pytest.mark.parametrize(("first", "announced"), [(b"xx", 1), (b"", -1)])
def test_sizes_that_cannot_be_break_the_protocol(first: bytes, announced: int) -> None:
    with pytest.raises(IntakeError):
        Intake().begin(head(first), announced, 0.0)


def test_a_work_that_begins_again_before_it_is_whole_breaks_the_protocol() -> None:
    intake = Intake()
    intake.begin(head(b"x"), 3, 0.0)
    with pytest.raises(IntakeError, match="began again"):
        intake.begin(head(b"x"), 3, 0.0)


def refusal(intake: Intake, work: Work, input_bytes: int) -> Cause:
    with pytest.raises(IntakeRefused) as refused:
        intake.begin(work, input_bytes, 0.0)
    assert refused.value.key == work.key
    return refused.value.failure.cause


def test_an_input_above_the_limit_is_refused() -> None:
    intake = Intake()
    assert refusal(intake, head(b"x"), MAX_INPUT_BYTES + 1) is Cause.INVALID_INPUT
    assert intake.begin(head(b"x"), MAX_INPUT_BYTES, 0.0) is None


def test_unfinished_works_hold_bounded_memory() -> None:
    intake = Intake()
    keys = [AttemptKey(f"r{n}", 1) for n in range(5)]
    for key in keys[:3]:
        assert intake.begin(head(b"x", key), MAX_INPUT_BYTES, 0.0) is None
    assert refusal(intake, head(b"x", keys[3]), MAX_INPUT_BYTES) is Cause.OVERLOADED
    assert intake.begin(head(b"xyz", keys[4]), 3, 0.0) is not None  # whole at once, nothing is kept
    intake.cancel(keys[0])
    assert intake.begin(head(b"x", keys[3]), MAX_INPUT_BYTES, 0.0) is None
    intake.add(keys[1], bytes(MAX_INPUT_BYTES - 1), 0.0)
    assert intake.begin(head(b"x", keys[4]), MAX_INPUT_BYTES, 0.0) is None


def test_many_unfinished_small_works_are_bounded_too() -> None:
    intake = Intake()
    for n in range(MAX_PARTIAL_BYTES // (HEAD_BYTES + 1)):
        intake.begin(head(b"", AttemptKey(f"r{n}", 1)), 1, 0.0)
    assert refusal(intake, head(b"", OTHER), HEAD_BYTES) is Cause.OVERLOADED


def numbered(seq: int, data: bytes = b"x") -> Work:
    return replace(head(data, AttemptKey(f"r{seq}", 1)), work_seq=seq)


def test_work_is_acknowledged_when_all_before_it_has_arrived() -> None:
    intake = Intake()
    assert intake.acked_seq == 0
    intake.begin(numbered(1), 1, 0.0)
    assert intake.acked_seq == 1
    intake.begin(numbered(2), 3, 0.0)
    intake.begin(numbered(3), 3, 0.0)
    intake.begin(numbered(4), 1, 0.0)
    assert intake.acked_seq == 1
    intake.add(AttemptKey("r3", 1), b"yz", 0.0)
    assert intake.acked_seq == 1
    intake.add(AttemptKey("r2", 1), b"yz", 0.0)
    assert intake.acked_seq == 4


def test_what_is_cancelled_or_refused_is_done() -> None:
    intake = Intake()
    intake.begin(numbered(1), 3, 0.0)
    intake.cancel(AttemptKey("r1", 1))
    assert intake.acked_seq == 1
    intake.cancel(AttemptKey("r2", 1))
    intake.begin(numbered(2), 3, 0.0)
    assert intake.acked_seq == 2
    assert refusal(intake, numbered(3), MAX_INPUT_BYTES + 1) is Cause.INVALID_INPUT
    assert intake.acked_seq == 3
    intake.begin(replace(numbered(4), remaining_ms=10.0), 3, 0.0)
    with pytest.raises(IntakeRefused):
        intake.add(AttemptKey("r4", 1), b"y", 1.0)
    assert intake.acked_seq == 4


def test_the_time_on_the_way_is_gone() -> None:
    intake = Intake()
    intake.begin(replace(head(b"x"), remaining_ms=3000.0, ttft_remaining_ms=800.0), 3, 5.0)
    assert intake.add(KEY, b"y", 5.5) is None
    whole = intake.add(KEY, b"z", 6.0)
    assert whole is not None
    assert (whole.remaining_ms, whole.ttft_remaining_ms) == (2000.0, 1.0)
    unlimited = Intake()
    unlimited.begin(head(b"x"), 2, 0.0)
    assert unlimited.add(KEY, b"y", 1e6) == head(b"xy")


@pytest.mark.parametrize("rest", [b"y", b"yz"])
def test_a_deadline_that_passes_on_the_way_is_refused_at_once(rest: bytes) -> None:
    intake = Intake()
    intake.begin(replace(head(b"x"), remaining_ms=1000.0), 3, 0.0)
    with pytest.raises(IntakeRefused) as refused:
        intake.add(KEY, rest, 1.0)
    assert (refused.value.key, refused.value.failure.cause) == (KEY, Cause.DEADLINE)
    assert intake._partial == {}
