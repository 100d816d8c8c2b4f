"""One life of a link between streams written by hand and a node that only takes notes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from tidegate.link import codec
from tidegate.link.client import LinkCredentials
from tidegate.link.seam import NodeListener, WorkRefused
from tidegate.link.session import LinkLost, LinkSession
from tidegate.node.v1 import node_pb2
from tidegate.routing.domain import (
    AttemptKey,
    CacheDelta,
    Cause,
    Failure,
    Finish,
    FinishReason,
    InputKind,
    NodeLoad,
    Sampling,
    SequenceOutput,
    Work,
)

pytestmark = pytest.mark.looptime


class Stream:
    """This side's end of one stream: `incoming` is read, `written` was sent, with the loop's time."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.written: list[tuple[float, Any]] = []

    async def read(self) -> Any:
        return await self.incoming.get()

    async def write(self, message: Any) -> None:
        self.written.append((asyncio.get_running_loop().time(), message))

    async def done_writing(self) -> None:
        """The peer has read everything and ends the stream."""
        self.incoming.put_nowait(grpc.aio.EOF)

    def sent(self, kind: str) -> list[Any]:
        return [getattr(m, kind) for _, m in self.written if m.WhichOneof("message") == kind]

    def sent_at_s(self, kind: str) -> list[float]:
        return [at for at, m in self.written if m.WhichOneof("message") == kind]


class NotingNode:
    """A NodeService that keeps what it is given; `defect` is raised by submit."""

    def __init__(self) -> None:
        self.now = NodeLoad(ready=True)
        self.taken: list[Work] = []
        self.defect: Exception | None = None

    def load(self) -> NodeLoad:
        return self.now

    def cache_full(self) -> CacheDelta:
        return CacheDelta(full=True)

    def submit(self, listener: NodeListener, work: Work) -> None:
        if self.defect is not None:
            raise self.defect
        self.taken.append(work)

    def cancel(self, key: AttemptKey) -> None:
        """Nothing runs here."""


class Link:
    """A session whose streams are open."""

    def __init__(self) -> None:
        self.node = NotingNode()
        self.control, self.data = Stream(), Stream()
        clock = asyncio.get_running_loop().time
        credentials = LinkCredentials(next_link_epoch=lambda: 1)
        self.session = LinkSession(self.node, "gw:1", credentials, clock)  # type: ignore[arg-type]

    async def settle(self) -> None:
        await asyncio.sleep(0.001)

    async def give(self, work: Work, *, first: int | None = None) -> None:
        pb = codec.work_to_pb(work, work.input[:first])
        self.data.incoming.put_nowait(node_pb2.DataResponse(work=pb))
        await self.settle()

    async def fragment(self, name: str, data: bytes) -> None:
        pb = node_pb2.WorkFragment(key=node_pb2.AttemptKey(request_id=name, attempt_no=1), data=data)
        self.data.incoming.put_nowait(node_pb2.DataResponse(work_fragment=pb))
        await self.settle()

    @property
    def bounces(self) -> list[tuple[str, Cause]]:
        bounced = self.data.sent("bounce")
        return [(b.key.request_id, codec.failure_from_pb(b.failure).cause) for b in bounced]

    @property
    def beats(self) -> list[node_pb2.Heartbeat]:
        return self.control.sent("heartbeat")


@asynccontextmanager
async def linked() -> AsyncIterator[Link]:
    link = Link()
    pump = asyncio.create_task(link.session._pump(link.control, link.data))
    await link.settle()
    try:
        yield link
        assert not pump.done(), "the link was lost"
    finally:
        pump.cancel()
        with suppress(asyncio.CancelledError, LinkLost):
            await pump


def work(name: str, data: bytes = b"hello", **changes: Any) -> Work:
    return Work(
        AttemptKey(name, 1), "default", "d", InputKind.TEXT, data, Sampling(), max_tokens=4, **changes
    )


def output(name: str, index: int, *, last: bool = False) -> SequenceOutput:
    finish = Finish(FinishReason.STOP) if last else None
    return SequenceOutput(AttemptKey(name, 1), index, 1, (index,), f"t{index} ", finish=finish)


async def test_a_defect_in_one_request_leaves_the_link_and_says_no_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with linked() as link:
        await link.give(work("other"))
        link.node.defect = KeyError("the secret prompt")
        await link.give(work("poison"))
        link.node.defect = None
        await link.give(work("next"))
        link.session.deliver([output("other", 0), output("next", 0)])
        await link.settle()
        assert link.bounces == [("poison", Cause.INTERNAL)]
        batches = link.data.sent("chunk_batch")
        assert [o.key.request_id for b in batches for o in b.outputs] == ["other", "next"]
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.error == "KeyError"  # type: ignore[attr-defined]
    assert "submit" in record.trace  # type: ignore[attr-defined]
    assert "secret" not in str(record.__dict__)
    assert "secret" not in str(link.data.written)


async def test_a_refusal_bounces_with_its_cause() -> None:
    async with linked() as link:
        link.node.defect = WorkRefused(Failure(Cause.OVERLOADED, "full"))
        await link.give(work("r1"))
        assert link.bounces == [("r1", Cause.OVERLOADED)]


async def test_work_that_comes_twice_leaves_the_running_one_alone() -> None:
    async with linked() as link:
        await link.give(work("r1", credits=2))
        link.session.deliver([output("r1", 0)])
        await link.give(work("r1", credits=50))
        assert link.bounces == [("r1", Cause.FENCED)]
        assert len(link.node.taken) == 1
        for index in (1, 2):
            link.session.deliver([output("r1", index)])
            await link.settle()
        sent = [o for b in link.data.sent("chunk_batch") for o in b.outputs]
        assert [o.first_index for o in sent] == [0, 1]  # the credits are those it came with
        link.session.deliver([output("r1", 3, last=True)])
        await link.settle()
        assert link.data.sent("chunk_batch")[-1].outputs[0].HasField("finish")


async def test_the_last_words_go_before_the_end() -> None:
    link = Link()
    pump = asyncio.create_task(link.session._pump(link.control, link.data))
    await link.give(work("r1", credits=1))
    for index in range(3):
        link.session.deliver([output("r1", index, last=index == 2)])
    beats = len(link.beats)
    link.session.finish()
    with pytest.raises(LinkLost, match="ended the data stream"):
        await pump
    assert len(link.beats) == beats + 1
    (sent,) = [o for b in link.data.sent("chunk_batch") for o in b.outputs]
    assert (sent.count, sent.HasField("finish")) == (3, True)


async def test_a_running_answer_keeps_a_finishing_link() -> None:
    async with linked() as link:
        await link.give(work("r1", credits=1))
        link.session.deliver([output("r1", 0)])
        link.session.deliver([output("r1", 1)])
        await link.settle()
        link.session.deliver([output("r1", 2)])
        link.session.finish()
        await asyncio.sleep(5.0)
        assert link.data.incoming.empty()


async def test_a_large_work_is_acknowledged_when_it_is_whole() -> None:
    async with linked() as link:
        await link.give(work("big", b"x" * 10, work_seq=1), first=4)
        await link.give(work("small", work_seq=2))
        await asyncio.sleep(2.5)
        assert [w.key.request_id for w in link.node.taken] == ["small"]
        assert link.beats[-1].last_work_seq == 0
        await link.fragment("big", b"x" * 6)
        await asyncio.sleep(2.5)
        assert link.node.taken[-1].input == b"x" * 10
        assert link.beats[-1].last_work_seq == 2


async def test_a_deadline_counts_from_the_head_of_a_work() -> None:
    async with linked() as link:
        await link.give(work("r1", b"x" * 10, remaining_ms=3000.0), first=4)
        await asyncio.sleep(1.0)
        await link.fragment("r1", b"x" * 6)
        left_ms = link.node.taken[0].remaining_ms
        assert left_ms is not None
        assert left_ms == pytest.approx(2000.0, abs=10.0)
        await link.give(work("r2", b"x" * 10, remaining_ms=500.0), first=4)
        await asyncio.sleep(1.0)
        await link.fragment("r2", b"x" * 6)
        assert link.bounces == [("r2", Cause.DEADLINE)]
        assert len(link.data.sent("fragment_ack")) == 2


async def test_a_draining_node_says_so_before_a_large_input_has_come() -> None:
    async with linked() as link:
        await link.give(work("r0", b"x" * 10), first=4)
        assert link.bounces == []
        link.node.now = NodeLoad(ready=True, draining=True)
        await link.give(work("r1", b"x" * 10), first=4)
        assert link.bounces == [("r1", Cause.DRAINING)]
        await link.fragment("r1", b"x" * 6)
        assert link.node.taken == []
        assert len(link.data.sent("fragment_ack")) == 1


async def test_a_node_that_ceases_to_take_work_says_so_at_once() -> None:
    async with linked() as link:
        await asyncio.sleep(10.0)
        link.session.load_changed()
        await asyncio.sleep(0.1)
        # Busier is no news for a second, but these are.
        for now in (
            NodeLoad(ready=True, running=1),
            NodeLoad(ready=False, running=1),
            NodeLoad(ready=True, running=1),
            NodeLoad(ready=True, running=1, draining=True),
        ):
            link.node.now = now
            link.session.load_changed()
            await asyncio.sleep(0.01)
        told = [(b.ready, b.draining) for b in link.beats[-3:]]
        assert told == [(False, False), (True, False), (True, True)]
        assert link.control.sent_at_s("heartbeat")[-3:] == pytest.approx([10.11, 10.12, 10.13], abs=0.005)


async def test_load_is_told_once_a_second_however_often_it_changes() -> None:
    async with linked() as link:
        link.control.written.clear()
        for running in range(400):
            link.node.now = NodeLoad(ready=True, running=running)
            link.session.load_changed()
            await asyncio.sleep(0.01)
        assert len(link.beats) == 4
