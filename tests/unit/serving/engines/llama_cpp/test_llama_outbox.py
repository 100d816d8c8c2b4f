from __future__ import annotations

import asyncio

import pytest

from serving.engines.llama_cpp.outbox import Outbox
from tidegate.routing.domain import AttemptKey, SequenceOutput, StepBatch

A, B = AttemptKey("a", 1), AttemptKey("b", 1)


def output(key: AttemptKey, index: int) -> SequenceOutput:
    return SequenceOutput(key, index, 1, (index,))


async def collect(outbox: Outbox) -> list[StepBatch]:
    return [batch async for batch in outbox.batches()]


async def test_what_was_put_comes_out_in_order_and_ends_when_closed() -> None:
    outbox = Outbox()
    outbox.put([output(A, 0), output(B, 0)])
    outbox.put([])
    outbox.put([output(A, 1)])
    outbox.close()
    assert await collect(outbox) == [
        StepBatch((output(A, 0), output(B, 0))),
        StepBatch((output(A, 1),)),
    ]


async def test_a_cancelled_sequence_leaves_no_output_behind() -> None:
    outbox = Outbox()
    outbox.put([output(A, 0), output(B, 0)])
    outbox.put([output(A, 1)])
    outbox.take_back(A)
    outbox.close()
    assert await collect(outbox) == [StepBatch((output(B, 0),))]


@pytest.mark.looptime
async def test_a_waiting_consumer_is_woken() -> None:
    outbox = Outbox()
    consumer = asyncio.create_task(collect(outbox))
    for index in range(3):
        await asyncio.sleep(1.0)
        outbox.put([output(A, index)])
    await asyncio.sleep(1.0)
    outbox.close()
    assert len(await asyncio.wait_for(consumer, 1.0)) == 3
