"""Outputs on their way up a link, bounded per request by credits."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.link.outbox import Outbox, merge
from tidegate.routing.domain import (
    AttemptKey,
    Finish,
    FinishReason,
    FirstToken,
    SequenceOutput,
)

KEY = AttemptKey("r1", 1)
OTHER = AttemptKey("r2", 1)
STAMPS = FirstToken(1.0, 2.0, 3, 4, 5)


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
