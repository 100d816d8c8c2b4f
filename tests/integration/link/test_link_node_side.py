"""A node's link against a gateway written by hand, which says what no proper gateway would."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from gateway_rig import QUICK, Node, start_node, until

from serving.engines.oracle import oracle_text
from tidegate.link import codec
from tidegate.link.intake import MAX_INPUT_BYTES
from tidegate.node.v1 import node_pb2, node_pb2_grpc
from tidegate.routing.domain import AttemptKey, Cause, InputKind, Sampling, Work
from tidegate.wire.channels import server_options


class ScriptedGateway(node_pb2_grpc.NodeLinkServiceServicer):
    """Completes handshakes; a test then talks through `control` and `data` and reads what came."""

    def __init__(self) -> None:
        self.registers: list[node_pb2.Register] = []
        self.control: Any = None
        self.data: Any = None
        self.beats: list[node_pb2.Heartbeat] = []
        self.pongs: list[int] = []
        self.caches: list[node_pb2.CacheReport] = []
        self.batches: list[node_pb2.ChunkBatch] = []
        self.bounces: list[node_pb2.Bounce] = []
        self.acked_bytes = 0
        self.refusal: tuple[grpc.StatusCode, str] | None = None

    async def Control(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        self.registers.append((await context.read()).register)
        if self.refusal is not None:
            await context.abort(*self.refusal)
        registered = node_pb2.Registered(link_token="t", heartbeat_interval_ms=200.0)
        await context.write(node_pb2.ControlResponse(registered=registered))
        self.control = context
        while (message := await context.read()) is not grpc.aio.EOF:
            match message.WhichOneof("message"):
                case "heartbeat":
                    self.beats.append(message.heartbeat)
                case "pong":
                    self.pongs.append(message.pong.nonce)
                case "cache_report":
                    self.caches.append(message.cache_report)

    async def Data(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        assert (await context.read()).hello.link_token == "t"
        await context.write(node_pb2.DataResponse(opened=node_pb2.Opened()))
        self.data = context
        while (message := await context.read()) is not grpc.aio.EOF:
            match message.WhichOneof("message"):
                case "chunk_batch":
                    self.batches.append(message.chunk_batch)
                case "bounce":
                    self.bounces.append(message.bounce)
                case "fragment_ack":
                    self.acked_bytes += message.fragment_ack.bytes

    async def say(self, **message: Any) -> None:
        await self.control.write(node_pb2.ControlResponse(**message))

    async def send(self, **message: Any) -> None:
        await self.data.write(node_pb2.DataResponse(**message))

    async def give(self, work: Work, first: int, *, input_bytes: int | None = None) -> None:
        pb = codec.work_to_pb(work, work.input[:first])
        if input_bytes is not None:
            pb.input_bytes = input_bytes
        await self.send(work=pb)

    def text(self, name: str) -> str:
        return "".join(o.text for b in self.batches for o in b.outputs if o.key.request_id == name)

    def finished(self, name: str) -> bool:
        return any(o.HasField("finish") for b in self.batches for o in b.outputs if o.key.request_id == name)


def work(
    name: str, data: bytes = b"hello", *, work_seq: int = 1, max_tokens: int = 3, credits: int = 64
) -> Work:
    return Work(
        key=AttemptKey(name, 1),
        tenant="default",
        variant_digest=QUICK.model_digest,
        input_kind=InputKind.TEXT,
        input=data,
        sampling=Sampling(),
        max_tokens=max_tokens,
        credits=credits,
        work_seq=work_seq,
    )


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    gateway = ScriptedGateway()
    server = grpc.aio.server(options=server_options(small_window=True))
    node_pb2_grpc.add_NodeLinkServiceServicer_to_server(gateway, server)
    gateway.port = server.add_insecure_port("127.0.0.1:0")  # type: ignore[attr-defined]
    await server.start()
    yield gateway
    await server.stop(None)


@pytest.fixture
async def node(gateway: ScriptedGateway) -> AsyncIterator[Node]:
    node = await start_node("n1", f"127.0.0.1:{gateway.port}")  # type: ignore[attr-defined]
    yield node
    await node.stop()


@pytest.fixture
async def linked(gateway: ScriptedGateway, node: Node) -> ScriptedGateway:
    await until(lambda: gateway.data is not None and node.link.connected and gateway.beats)
    return gateway


async def test_it_introduces_itself_and_says_how_it_is(linked: ScriptedGateway) -> None:
    (register,) = linked.registers
    assert (register.node_id, register.name, register.variants[0].model) == ("n1", "name-n1", "oracle")
    await until(lambda: len(linked.beats) >= 3, what="heartbeats")
    assert linked.beats[-1].ready
    await until(lambda: linked.caches, what="the cache")
    assert linked.caches[0].full


async def test_work_in_pieces_is_acknowledged_and_answered(linked: ScriptedGateway) -> None:
    data = b"0123456789" * 5000
    await linked.give(work("r1", data, work_seq=7), first=16_384)
    for start in range(16_384, len(data), 16_384):
        piece = data[start : start + 16_384]
        fragment = node_pb2.WorkFragment(key=codec.key_to_pb(AttemptKey("r1", 1)), data=piece)
        await linked.send(work_fragment=fragment)
    await until(lambda: linked.finished("r1"), what="the answer")
    assert linked.text("r1") == oracle_text(QUICK.model_digest, data, 3)
    assert linked.acked_bytes == len(data) - 16_384
    await until(lambda: linked.beats[-1].last_work_seq == 7, what="the acknowledgement")


async def test_a_cancel_that_overtakes_its_work_wins(linked: ScriptedGateway, node: Node) -> None:
    key = codec.key_to_pb(AttemptKey("r1", 1))
    await linked.say(cancel=node_pb2.Cancel(key=key))
    await linked.say(ping=node_pb2.Ping(nonce=9))
    await until(lambda: 9 in linked.pongs)
    await linked.give(work("r1", b"x" * 40_000), first=10_000)
    await linked.send(work_fragment=node_pb2.WorkFragment(key=key, data=b"x" * 30_000))
    await linked.give(work("r2"), first=5)
    await until(lambda: linked.finished("r2"), what="the other answer")
    assert not linked.text("r1")
    assert linked.acked_bytes == 30_000  # the window must open again
    assert node.idle


async def test_an_input_above_the_limit_costs_its_own_request_only(linked: ScriptedGateway) -> None:
    await linked.give(work("big"), first=5, input_bytes=MAX_INPUT_BYTES + 1)
    await until(lambda: linked.bounces, what="the bounce")
    assert codec.failure_from_pb(linked.bounces[0].failure).cause is Cause.INVALID_INPUT
    await linked.give(work("r1"), first=5)
    await until(lambda: linked.finished("r1"), what="the next answer")
    assert len(linked.registers) == 1


@pytest.mark.parametrize(
    ("changes", "cause"),
    [({"variant_digest": "other"}, Cause.UNKNOWN_VARIANT), ({"max_tokens": 0}, Cause.INVALID_INPUT)],
)
async def test_refused_work_bounces_with_its_cause(
    linked: ScriptedGateway, changes: dict[str, Any], cause: Cause
) -> None:
    pb = codec.work_to_pb(work("r1"), b"hello")
    pb.MergeFrom(node_pb2.Work(**{k: v for k, v in changes.items() if v}))
    for name, value in changes.items():
        if not value:
            pb.ClearField(name)
    await linked.send(work=pb)
    await until(lambda: linked.bounces, what="the bounce")
    assert linked.bounces[0].key.request_id == "r1"
    assert codec.failure_from_pb(linked.bounces[0].failure).cause is cause


async def test_an_attempt_that_was_fenced_off_is_refused(linked: ScriptedGateway) -> None:
    await linked.say(fence=node_pb2.Fence(key=codec.key_to_pb(AttemptKey("r1", 2))))
    await linked.say(ping=node_pb2.Ping(nonce=9))
    await until(lambda: 9 in linked.pongs)
    await linked.give(work("r1"), first=5)
    await until(lambda: linked.bounces, what="the bounce")
    assert codec.failure_from_pb(linked.bounces[0].failure).cause is Cause.FENCED


async def test_without_credit_outputs_are_gathered_and_the_end_still_comes(linked: ScriptedGateway) -> None:
    await linked.give(work("r1", credits=2, max_tokens=50), first=5)
    await linked.give(work("r2", credits=64, max_tokens=10), first=5)
    await until(lambda: linked.finished("r1") and linked.finished("r2"), what="both answers")
    assert linked.text("r1") == oracle_text(QUICK.model_digest, b"hello", 50)
    messages = [o for b in linked.batches for o in b.outputs if o.key.request_id == "r1"]
    assert len(messages) == 3


async def test_a_drain_is_heard_and_told(linked: ScriptedGateway) -> None:
    await linked.say(drain=node_pb2.Drain())
    await until(lambda: linked.beats[-1].draining, what="the heartbeat")
    await linked.give(work("r1"), first=5)
    await until(lambda: linked.bounces, what="the bounce")
    assert codec.failure_from_pb(linked.bounces[0].failure).cause is Cause.DRAINING


async def test_a_cache_resync_is_answered_with_the_whole_set(linked: ScriptedGateway) -> None:
    await until(lambda: linked.caches)
    seen = len(linked.caches)
    await linked.say(cache_resync=node_pb2.CacheResync())
    await until(lambda: len(linked.caches) > seen, what="the report")
    assert linked.caches[-1].full


@pytest.mark.parametrize("how", ["more bytes than announced", "control ends", "data ends"])
async def test_a_broken_link_cancels_its_work_and_the_node_comes_back(
    linked: ScriptedGateway, node: Node, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tidegate.link.client")
    node.engine.hang()
    await linked.give(work("r1"), first=5)
    await until(lambda: not node.idle)
    key = codec.key_to_pb(AttemptKey("r2", 1))
    if how == "more bytes than announced":
        await linked.give(work("r2", b"x" * 10), first=5)
        await linked.send(work_fragment=node_pb2.WorkFragment(key=key, data=b"y" * 6))
    else:
        stream = linked.control if how == "control ends" else linked.data
        with pytest.raises(grpc.aio.AbortError):
            await stream.abort(grpc.StatusCode.UNAVAILABLE, "going down")
    await until(lambda: len(linked.registers) == 2, what="the node coming back")
    assert node.idle
    assert linked.registers[1].link_epoch > linked.registers[0].link_epoch
    (record,) = [r for r in caplog.records if r.name == "tidegate.link.client"]
    assert record.levelno == logging.INFO
    node.engine.resume()
    await until(lambda: node.link.connected)
    await linked.give(work("r3"), first=5)
    await until(lambda: linked.finished("r3"), what="an answer on the new link")


async def test_a_refusal_is_logged_and_tried_again(
    gateway: ScriptedGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tidegate.link.client")
    gateway.refusal = (grpc.StatusCode.UNAUTHENTICATED, "who are you?")
    node = await start_node("n1", f"127.0.0.1:{gateway.port}")  # type: ignore[attr-defined]
    await until(lambda: len(gateway.registers) >= 2, what="another try")
    gateway.refusal = None
    await until(lambda: node.link.connected, what="being let in")
    reasons = [r.reason for r in caplog.records if r.name == "tidegate.link.client"]  # type: ignore[attr-defined]
    assert set(reasons) == {"UNAUTHENTICATED: who are you?"}
    await node.stop()


async def test_stopping_a_link_that_cannot_connect_is_quick() -> None:
    node = await start_node("n1", "127.0.0.1:1")
    await asyncio.sleep(0.1)
    async with asyncio.timeout(2.0):
        await node.stop()
