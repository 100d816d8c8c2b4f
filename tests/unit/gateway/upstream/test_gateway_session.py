"""One linked node: streams per attempt, cancels in every window, and what a lost link ends."""

from __future__ import annotations

import asyncio

import pytest
from gateway_fakes import work

from gateway.upstream import AttemptStream, LinkRegistry, NodeSession, NotLinked
from gateway.upstream.commands import CancelCommand, CreditCommand, WorkCommand
from tidegate.routing.domain import (
    AttemptKey,
    Cause,
    Failure,
    Finish,
    FinishReason,
    FirstToken,
    SequenceOutput,
    Work,
)

KEY = AttemptKey("r1", 1)
STAMPS = FirstToken(1.0, 2.0, 0, 1, 5)


def output(index: int, key: AttemptKey = KEY, *, last: bool = False) -> SequenceOutput:
    finish = Finish(FinishReason.LENGTH) if last else None
    return SequenceOutput(key, index, 1, (index,), "t", first_token=None if index else STAMPS, finish=finish)


class Session(NodeSession):
    """Notes what the fleet would hear."""

    def __init__(self, node_id: str = "n1", link_epoch: int = 1) -> None:
        self.opened: list[Work] = []
        self.first: list[AttemptKey] = []
        self.ended: list[AttemptKey] = []
        super().__init__(
            node_id,
            link_epoch,
            on_open=self.opened.append,
            on_first_token=self.first.append,
            on_end=self.ended.append,
        )


@pytest.fixture
def session() -> Session:
    return Session()


def failure_of(found: SequenceOutput) -> Failure:
    assert found.finish is not None
    assert isinstance(found.finish.result, Failure)
    return found.finish.result


async def test_work_is_numbered_and_its_outputs_come_in_order(session: Session) -> None:
    stream = session.open(work())
    session.open(work("r2"))
    assert [w.work_seq for w in session.opened] == [1, 2]
    session.deliver([output(0), output(1)])
    session.deliver([output(2, last=True)])
    assert [(await stream.next()).first_index for _ in range(3)] == [0, 1, 2]
    assert session.first == [KEY]
    assert session.ended == [KEY]
    assert session.running == 1


async def test_outputs_of_unknown_attempts_are_dropped(session: Session) -> None:
    stream = session.open(work())
    session.deliver([output(0, AttemptKey("r1", 2)), output(0)])
    assert (await stream.next()).key == KEY
    assert session.running == 1


async def test_a_cancel_before_the_head_was_sent_costs_no_message(session: Session) -> None:
    session.open(work()).close()
    assert session.ended == [KEY]
    session.open(work("r2"))
    head = await session.next_data()
    assert isinstance(head, WorkCommand)
    assert head.work.key.request_id == "r2"
    assert not session._control


@pytest.mark.parametrize("outputs", [0, 1])
async def test_a_cancel_after_the_head_was_sent_goes_over_control(session: Session, outputs: int) -> None:
    stream = session.open(work())
    await session.next_data()
    session.deliver([output(i) for i in range(outputs)])
    stream.close()
    assert await session.next_control() == CancelCommand(KEY)
    stream.close()  # twice is once
    assert session.ended == [KEY]
    assert not session._control
    session.deliver([output(1)])  # what was on its way is dropped
    assert session.running == 0


async def test_an_attempt_that_has_ended_is_not_cancelled(session: Session) -> None:
    stream = session.open(work())
    await session.next_data()
    session.deliver([output(0, last=True)])
    stream.close()  # before its consumer has seen the end
    assert not session._control


async def test_a_bounce_ends_the_attempt_and_what_is_left_of_its_input(session: Session) -> None:
    stream = session.open(work(data=b"x" * 100_000))
    await session.next_data()
    session.bounced(KEY, Failure(Cause.OVERLOADED, "full"))
    session.bounced(KEY, Failure(Cause.OVERLOADED, "full"))
    assert failure_of(await stream.next()).cause is Cause.OVERLOADED
    assert session.ended == [KEY]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(session.next_data(), 0.01)


async def test_a_lost_link_ends_every_attempt_at_once(session: Session) -> None:
    first, second = session.open(work()), session.open(work("r2"))
    session.deliver([output(0)])
    session.close("the node was silent for 5.6 s")
    session.close("again")
    await first.next()
    for stream in (first, second):
        failure = failure_of(await stream.next())
        assert (failure.cause, failure.detail) == (Cause.NODE_LOST, "the node was silent for 5.6 s")
    assert session.close_reason == "the node was silent for 5.6 s"
    assert session.ended == [KEY, AttemptKey("r2", 1)]
    late = session.open(work("r3"))
    assert failure_of(await late.next()).cause is Cause.NODE_LOST
    assert session.running == 0
    assert len(session.opened) == 2


@pytest.mark.parametrize(("credits", "after"), [(64, 16), (32, 16), (16, 8), (4, 2), (1, 1)])
async def test_credit_comes_back_before_the_node_runs_dry(session: Session, credits: int, after: int) -> None:
    stream = session.open(work(credits=credits, max_tokens=100))
    await session.next_data()
    session.deliver([output(i) for i in range(after)])
    for _ in range(after):
        await stream.next()
    assert await asyncio.wait_for(session.next_data(), 1.0) == CreditCommand(KEY, after)


async def test_a_reader_that_takes_nothing_gives_no_credit(session: Session) -> None:
    session.open(work())
    await session.next_data()
    session.deliver([output(i) for i in range(64)])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(session.next_data(), 0.01)


async def test_a_newer_link_replaces_an_older_one_and_not_the_other_way() -> None:
    registry = LinkRegistry()
    old, new = Session(link_epoch=3), Session(link_epoch=4)
    assert registry.add(old)
    stream = registry.open("n1", work())
    assert registry.add(new)
    assert failure_of(await stream.next()).detail == "replaced by a newer link of the same node"
    assert not registry.add(Session(link_epoch=4))
    assert not registry.add(Session(link_epoch=2))
    assert not new.closed.is_set()
    assert not registry.remove(old, "its stream ended")  # the newer one stays
    assert registry.get("n1") is new
    assert registry.sessions() == (new,)
    assert registry.remove(new, "ended")
    assert registry.get("n1") is None
    with pytest.raises(NotLinked):
        registry.open("n1", work())


async def test_a_stream_fails_where_its_consumer_stands() -> None:
    stream = AttemptStream(KEY, 64, max_tokens=8, grant=lambda key, n: None, cancel=lambda key: None)
    stream.put(output(0))
    await stream.next()
    stream.fail(Failure(Cause.NODE_LOST))
    stream.put(output(1))  # nothing follows an end
    last = await stream.next()
    assert (last.first_index, failure_of(last).cause) == (1, Cause.NODE_LOST)
    assert stream._outputs.empty()


@pytest.mark.parametrize("index", [0, 2], ids=["doubled", "left out"])
async def test_a_node_whose_tokens_are_not_contiguous_has_failed(session: Session, index: int) -> None:
    stream = session.open(work())
    await session.next_data()
    session.deliver([output(0), output(index), output(2, last=True)])
    await stream.next()
    last = await stream.next()
    assert (last.first_index, last.count, failure_of(last).cause) == (1, 0, Cause.INTERNAL)
    assert stream._outputs.empty()
    assert await session.next_control() == CancelCommand(KEY)
    assert session.ended == [KEY]
    assert session.running == 0


async def test_a_node_that_sends_more_than_it_may_has_failed(session: Session) -> None:
    """Beyond its credit, or more text than the tokens asked for can hold: both would fill our memory."""
    unread = session.open(work(credits=4, max_tokens=100))
    session.deliver([output(i) for i in range(6)])
    outputs = [await unread.next() for _ in range(6)]
    assert failure_of(outputs[5]).detail == "the node sent more than it had credit for"
    chatty = session.open(work("r2", max_tokens=2))
    await session.next_data()
    key = AttemptKey("r2", 1)
    session.deliver(
        [SequenceOutput(key, 0, 1, (1,), "x" * 4000), SequenceOutput(key, 1, 1, (2,), "x" * 4000)]
    )
    assert (await chatty.next()).finish is None
    assert "more text" in failure_of(await chatty.next()).detail
    assert session.running == 0
