"""The small parts of a node's link: backoff, fragments put together, outputs bounded by credits."""

from __future__ import annotations

import asyncio
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
from tidegate.link.outbox import Outbox, merge
from tidegate.routing.domain import (
    AttemptKey,
    Cause,
    Finish,
    FinishReason,
    FirstToken,
    InputKind,
    Sampling,
    SequenceOutput,
    Work,
)

KEY = AttemptKey("r1", 1)
OTHER = AttemptKey("other", 1)
STAMPS = FirstToken(1.0, 2.0, 3, 4, 5)


def head(data: bytes, key: AttemptKey = KEY) -> Work:
    return Work(key, "default", "d", InputKind.TEXT, data, Sampling(), max_tokens=4)


def output(index: int, key: AttemptKey = KEY, *, last: bool = False) -> SequenceOutput:
    return SequenceOutput(
        key,
        index,
        1,
        (index,),
        f"t{index} ",
        first_token=None if index else STAMPS,
        finish=Finish(FinishReason.STOP) if last else None,
    )


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


# --- outbox


async def take(outbox: Outbox) -> tuple[SequenceOutput, ...]:
    async with asyncio.timeout(1.0):
        return await outbox.take()


def test_merging_covers_both_and_keeps_the_stamps_and_the_end() -> None:
    both = merge(output(0), output(1, last=True))
    assert (both.first_index, both.count, both.token_ids, both.text) == (0, 2, (0, 1), "t0 t1 ")
    assert both.first_token == STAMPS
    assert both.finish == Finish(FinishReason.STOP)


async def test_one_step_of_several_requests_goes_as_one_batch() -> None:
    outbox = Outbox()
    outbox.open(KEY, 4)
    outbox.open(OTHER, 4)
    outbox.put([output(0), output(0, OTHER)])
    assert [o.key for o in await take(outbox)] == [KEY, OTHER]


async def test_what_waits_is_merged_and_costs_one_credit() -> None:
    outbox = Outbox()
    outbox.open(KEY, 1)
    outbox.put([output(0)])
    outbox.put([output(1)])
    (sent,) = await take(outbox)
    assert (sent.first_index, sent.count) == (0, 2)
    outbox.put([output(2)])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(outbox.take(), 0.01)
    outbox.grant(KEY, 1)
    assert (await take(outbox))[0].first_index == 2


async def test_a_request_without_credit_holds_nobody_else_up() -> None:
    outbox = Outbox()
    outbox.open(KEY, 1)
    outbox.open(OTHER, 100)
    for index in range(50):
        outbox.put([output(index), output(index, OTHER)])
        assert OTHER in {o.key for o in await take(outbox)}
    assert outbox._waiting[KEY].count == 49
    assert outbox._waiting[KEY].first_index == 1


async def test_the_end_needs_no_credit_and_frees_the_request() -> None:
    outbox = Outbox()
    outbox.open(KEY, 1)
    outbox.put([output(0)])
    await take(outbox)
    outbox.put([output(1)])
    outbox.put([output(2, last=True)])
    (last,) = await take(outbox)
    assert (last.first_index, last.count, last.finish is not None) == (1, 2, True)
    assert outbox._credits == outbox._waiting == {}
    outbox.put([output(3)])  # nothing follows the end
    outbox.grant(KEY, 5)
    assert outbox._credits == outbox._waiting == {}


async def test_a_forgotten_request_sends_nothing_more() -> None:
    outbox = Outbox()
    outbox.open(KEY, 4)
    outbox.put([output(0)])
    outbox.forget(KEY)
    outbox.put([output(1)])
    outbox.forget(KEY)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(outbox.take(), 0.01)


@given(steps=st.lists(st.sampled_from(["token", "credit", "take"]), max_size=60), credits=st.integers(1, 3))
def test_whatever_the_order_every_token_comes_once_and_in_order(steps: list[str], credits: int) -> None:
    async def play() -> None:
        outbox, produced, sent, granted, messages = Outbox(), 0, [], credits, 0
        outbox.open(KEY, credits)
        for step in [*steps, "end", "take"]:
            if step in ("token", "end"):
                outbox.put(
                    [replace(output(produced), finish=Finish(FinishReason.STOP) if step == "end" else None)]
                )
                produced += 1
            elif step == "credit":
                outbox.grant(KEY, 1)
                granted += 1
            elif (
                KEY in outbox._waiting
                and (step == "take")
                and (outbox._credits[KEY] or produced > len(steps))
            ):
                found = await asyncio.wait_for(outbox.take(), 1.0)
                messages += len(found)
                sent += [i for o in found for i in range(o.first_index, o.first_index + o.count)]
        sent += [i for o in outbox._waiting.values() for i in range(o.first_index, o.first_index + o.count)]
        assert sent == list(range(produced))
        assert messages <= granted + 1

    asyncio.run(play())
