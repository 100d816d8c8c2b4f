"""How a link notices silence, measures its round trip and survives nonsense."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from gateway_rig import QUICK, Rig, question, until
from raw_node import RawNode, ending, register

from gateway.transport import link_server
from tidegate.link import codec
from tidegate.node.v1 import node_pb2
from tidegate.routing.domain import (
    AttemptKey,
    CacheDelta,
    Cause,
    Code,
    Failure,
    Finish,
    FinishReason,
    Health,
    NodeLoad,
    SequenceOutput,
    ServeError,
)
from tidegate.routing.prefix import names_digest


async def test_a_silent_node_is_suspect_then_lost_and_its_work_ends(rig: Rig) -> None:
    """Its connections stay open the whole time, as those of a frozen process do."""
    async with RawNode(rig.link_address) as node:
        await node.join()
        await node.be_ready()
        await rig.until_health("raw", Health.READY)
        asked = asyncio.create_task(rig.ask(question("r1")))
        await node.receive("work")
        silent_s = time.monotonic()
        await rig.until_health("raw", Health.SUSPECT)
        assert time.monotonic() - silent_s >= 0.35
        with pytest.raises(ServeError) as caught:
            await asked
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "NODE_LOST")
        assert "silent for" in caught.value.message
        assert 0.9 < time.monotonic() - silent_s < 3.0
        assert rig.health("raw") is None
        code, why = await ending(node.control)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "silent for" in why


async def test_a_process_that_stood_still_does_not_blame_its_nodes(rig: Rig) -> None:
    for node_id in ("n1", "n2", "n3"):
        await rig.add_node(node_id)
    for _ in range(3):
        time.sleep(1.2)  # noqa: ASYNC251 - the whole loop stands still, longer than lost_after_s
        await asyncio.sleep(0.3)
    lost = {"event": "lost"}
    assert rig.app.metrics.registry.get_sample_value("tidegate_link_events_total", lost) is None
    assert {n.health for n in rig.app.fleet.snapshot().nodes} == {Health.READY}


async def test_any_word_keeps_a_node_alive(rig: Rig) -> None:
    async with RawNode(rig.link_address) as node:
        await node.join()
        await node.be_ready()
        for _ in range(8):
            await asyncio.sleep(0.2)
            await node.send(fragment_ack=node_pb2.FragmentAck(bytes=0))
        assert rig.health("raw") is Health.READY


async def test_nodes_with_little_to_say_stay_ready(rig: Rig) -> None:
    for node_id in ("n1", "n2"):
        await rig.add_node(node_id)
    for _ in range(20):
        await asyncio.sleep(0.1)
        assert rig.health("n1") is rig.health("n2") is Health.READY


async def test_a_round_trip_longer_than_a_heartbeat_is_still_measured(rig: Rig) -> None:
    async with RawNode(rig.link_address) as node:
        await node.join()
        first = await node.hear("ping")
        for _ in range(4):
            await asyncio.sleep(0.1)
            await node.say(heartbeat=codec.load_to_pb(NodeLoad()))
        await asyncio.sleep(0.05)
        assert rig.health("raw") is Health.NOT_READY
        await node.say(pong=node_pb2.Pong(nonce=first.nonce))
        await rig.until_health("raw", Health.READY)
        assert rig.app.fleet.snapshot().by_id["raw"].rtt_ms > 400
        await node.say(pong=node_pb2.Pong(nonce=first.nonce))  # an answer counts once
        await node.say(pong=node_pb2.Pong(nonce=12345))
        await asyncio.sleep(0.05)
        assert rig.app.fleet.snapshot().by_id["raw"].rtt_ms > 400


async def test_a_cache_index_that_went_wrong_is_asked_for_again_once(rig: Rig) -> None:
    names = tuple(bytes([i]) * 16 for i in range(3))
    async with RawNode(rig.link_address) as node:
        await node.join()
        await node.be_ready()
        for _ in range(3):  # whatever comes before the answer is not asked about again
            await node.say(cache_report=codec.cache_to_pb(CacheDelta(names[:1], (), digest=7)))
        await node.hear("cache_resync")
        full = CacheDelta(names, (), names_digest(names), full=True)
        await node.say(cache_report=codec.cache_to_pb(full))
        await until(lambda: rig.app.fleet.snapshot().by_id["raw"].prefix_blocks == frozenset(names))
        await node.say(heartbeat=codec.load_to_pb(NodeLoad()))
        kinds = []
        while True:
            message = await node.control.read()
            kinds.append(message.WhichOneof("message"))
            if kinds.count("ping") == 2:
                break
            await node.say(heartbeat=codec.load_to_pb(NodeLoad()))
        assert "cache_resync" not in kinds


async def test_outputs_nobody_asked_for_hurt_nobody(rig: Rig) -> None:
    async with RawNode(rig.link_address) as node:
        await node.join()
        await node.be_ready()
        await rig.until_health("raw", Health.READY)
        asked = asyncio.create_task(rig.ask(question("r1")))
        work = await node.receive("work")
        key = codec.key_from_pb(work.key)
        stray = AttemptKey("nobody", 1)
        outputs = [
            SequenceOutput(stray, 0, 1, (1,), "x"),
            SequenceOutput(key, 0, 1, (5,), "yes"),
            SequenceOutput(stray, 1, finish=Finish(FinishReason.STOP)),
        ]
        batch = node_pb2.ChunkBatch(outputs=[codec.output_to_pb(o) for o in outputs])
        await node.send(chunk_batch=batch)
        failure = codec.failure_to_pb(Failure(Cause.OVERLOADED, "stray"))
        await node.send(bounce=node_pb2.Bounce(key=codec.key_to_pb(stray), failure=failure))
        last = SequenceOutput(key, 1, finish=Finish(FinishReason.STOP))
        await node.send(chunk_batch=node_pb2.ChunkBatch(outputs=[codec.output_to_pb(last)]))
        assert len(await asked) == 3
        assert rig.health("raw") is Health.READY


async def test_bytes_that_are_no_message_end_that_link_only(rig: Rig) -> None:
    await rig.add_node("n1")
    async with RawNode(rig.link_address) as node:
        for method in ("Control", "Data"):
            call = node._channels[0].stream_stream(f"/tidegate.node.v1.NodeLinkService/{method}")()
            await call.write(b"\xff\xff\xff")
            assert await ending(call) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "the message is not valid protobuf",
            )
        await node.join()
        await node.be_ready()
        await rig.until_health("raw", Health.READY)
    assert rig.health("n1") is Health.READY


async def test_a_node_that_never_opens_its_data_stream_gets_no_work_and_is_dropped(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_server, "HANDSHAKE_TIMEOUT_S", 0.5)
    async with RawNode(rig.link_address) as node:
        await node.say(register=register())
        await node.hear("registered")
        assert rig.health("raw") is Health.NOT_READY
        with pytest.raises(ServeError) as caught:
            await rig.ask(question("r1"))
        assert caught.value.reason == "ALL_UNHEALTHY"
        started_s = time.monotonic()
        code, why = await ending(node.control)
        assert (code, why) == (grpc.StatusCode.UNAVAILABLE, "the data stream did not come")
        assert time.monotonic() - started_s < 2.0
    assert rig.health("raw") is None


async def test_a_heartbeat_acknowledges_work_and_unblocks_the_prediction(rig: Rig) -> None:
    node = await rig.add_node("n1", QUICK)
    node.engine.hang()
    call = rig.call(question("r1"))
    reading = asyncio.create_task(call.read())
    await until(lambda: not node.idle, what="the work")
    await until(lambda: rig.app.fleet.snapshot().by_id["n1"].load.running == 1, what="a heartbeat with it")
    assert rig.app.fleet.snapshot().by_id["n1"].in_flight.requests == 0
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    node.engine.resume()
