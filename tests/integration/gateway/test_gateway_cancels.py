"""Clients that leave, that stop reading, that are slow: slots are freed and other clients served."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import grpc
import pytest
from gateway_rig import QUICK, SLOW, Node, Rig, expected_text, question, text_of, until

from tidegate.routing.domain import Chunk, Code, GenerateEvent, ServeError
from tidegate.wire import codec


async def first_chunk(rig: Rig, call: Any) -> None:
    async for event in rig.events(call):
        if isinstance(event, Chunk):
            return


async def busy(node: Node, *, running: int = 0, queued: int = 0) -> None:
    await until(
        lambda: (node.engine.load().running, node.engine.load().queued) == (running, queued),
        what=f"running={running} queued={queued}",
    )


async def test_a_cancel_while_decoding_frees_the_sequence(rig: Rig) -> None:
    node = await rig.add_node("n1", SLOW)
    call = rig.call(question("r1", max_tokens=1000))
    await first_chunk(rig, call)
    call.cancel()
    assert await until(lambda: node.idle) < 1.0
    assert rig.app.dispatcher._admission.in_flight == 0


async def test_a_cancel_while_waiting_in_the_nodes_queue_frees_the_place() -> None:
    async with Rig(queue={"requests": 0}) as rig:
        node = await rig.add_node("n1", replace(SLOW, slots=1))
        running = rig.call(question("r1", max_tokens=1000))
        await first_chunk(rig, running)
        waiting = rig.call(question("r2"))
        reading = asyncio.create_task(waiting.read())
        await busy(node, running=1, queued=1)
        waiting.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await busy(node, running=1, queued=0)
        running.cancel()
        await busy(node)


async def test_a_cancel_while_waiting_in_the_gateway_leaves_the_node_alone(rig: Rig) -> None:
    node = await rig.add_node("n1", replace(SLOW, slots=1))
    running = rig.call(question("r1", max_tokens=1000))
    await first_chunk(rig, running)
    waiting = rig.call(question("r2"), timeout_s=None)
    reading = asyncio.create_task(waiting.read())
    answer = asyncio.create_task(first_chunk(rig, rig.call(question("r3"), timeout_s=None)))
    line = rig.app.dispatcher._line
    await until(lambda: len(line) == 2, what="two requests waiting")
    waiting.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await until(lambda: len(line) == 1, what="the first gone")
    assert (node.engine.load().running, node.engine.load().queued) == (1, 0)
    running.cancel()
    await answer


async def test_a_cancel_while_the_prompt_is_on_its_way_leaves_nothing_behind(rig: Rig) -> None:
    node = await rig.add_node("n1")
    session = rig.app.registry.get("n1")
    assert session is not None
    for attempt in range(5):
        call = rig.call(question(f"r{attempt}", "x" * 4_000_000))
        reading = asyncio.create_task(call.read())
        await until(lambda: session.running == 1, what="the attempt")
        await asyncio.sleep(0.01 * attempt)
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await until(lambda: session.running == 0 and node.idle, what="everything freed")
    request = question("after")
    assert text_of(await rig.ask(request)) == expected_text(request)
    assert rig.app.fleet.snapshot().by_id["n1"].in_flight.requests == 0


async def test_a_client_that_disconnects_frees_all_its_sequences(rig: Rig) -> None:
    node = await rig.add_node("n1", SLOW)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.ports.grpc}") as channel:
        rig.channel, kept = channel, rig.channel
        calls = [rig.call(question(f"r{i}", max_tokens=1000)) for i in range(4)]
        for call in calls:
            await first_chunk(rig, call)
        rig.channel = kept
    assert await until(lambda: node.idle) < 1.0


async def test_a_big_prompt_delays_neither_cancels_nor_heartbeats_nor_other_prompts(rig: Rig) -> None:
    node = await rig.add_node("n1", SLOW)
    victim = rig.call(question("victim", max_tokens=1000))
    await first_chunk(rig, victim)
    big = [rig.call(question(f"big{i}", "x" * 8_000_000, max_tokens=1)) for i in range(2)]
    reading = [asyncio.create_task(call.read()) for call in big]
    session = rig.app.registry.get("n1")
    assert session is not None
    await until(lambda: session.running == 3, what="all attempts")
    small = asyncio.create_task(rig.ask(question("small", max_tokens=1)))
    victim.cancel()
    assert await until(lambda: node.engine.load().running <= 1) < 1.0
    assert text_of(await small) == expected_text(question("small", max_tokens=1))
    assert session.running >= 2  # the big ones were still on their way: the test has bite
    assert rig.app.fleet.silent_ms("n1") < 1000
    for call, task in zip(big, reading, strict=True):
        call.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await until(lambda: node.idle)


async def stopped_reader(rig: Rig, request_id: str) -> Any:
    """A client on a connection of its own that reads nothing after the first message."""
    options = [
        ("grpc.http2.lookahead_bytes", 1024),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{rig.ports.grpc}", options=options)
    request = question(request_id, max_tokens=8000)
    method = "/tidegate.gateway.v1.GatewayService/Generate"
    call = channel.unary_stream(method)(codec.encode_generate_request(request).SerializeToString())
    await call.read()
    return channel, call


FAST = replace(QUICK, slots=32, pacing=0.0)


async def test_readers_that_stop_do_not_delay_others_and_are_cut() -> None:
    limits = {"write_stall_s": 1.0, "max_attempts": 1}
    async with Rig(limits=limits) as rig:
        node = await rig.add_node("n1", FAST)
        readers = [await stopped_reader(rig, f"stopped{i}") for i in range(4)]
        started_s = time.monotonic()
        for i in range(10):
            request = question(f"ok{i}", max_tokens=20)
            assert text_of(await rig.ask(request)) == expected_text(request, FAST)
        assert time.monotonic() - started_s < 3.0
        await until(lambda: node.idle)  # their answers wait in the gateway and hold no slot
        cut = {"tier": "edge", "code": "cancelled", "reason": ""}
        await until(
            lambda: rig.app.metrics.registry.get_sample_value("tidegate_requests_total", cut) == 4,
            what="the stopped readers being cut",
        )
        for channel, call in readers:
            async with asyncio.timeout(10.0):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await drain(call)
            assert caught.value.code() is grpc.StatusCode.CANCELLED
            await channel.close()


async def drain(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_slow_reader_gets_everything_in_order() -> None:
    async with Rig(limits={"credits": 4}) as rig:
        await rig.add_node("n1", FAST)
        request = question("r1", max_tokens=300)
        events: list[GenerateEvent] = []
        async for event in rig.events(rig.call(request)):
            events.append(event)
            if len(events) % 40 == 0:
                await asyncio.sleep(0.02)
        assert text_of(events) == expected_text(request, FAST)


@pytest.mark.parametrize("credits", [4, 5, 15, 16, 64])
async def test_few_credits_never_starve_a_stream(credits: int) -> None:
    async with Rig(limits={"credits": credits, "token_stall_s": 0.5}) as rig:
        settings = replace(QUICK, decode=((1, 50.0),))
        await rig.add_node("n1", settings)
        request = question("r1", max_tokens=40)
        gaps, last_s = [], None
        async for event in rig.events(rig.call(request)):
            if isinstance(event, Chunk):
                now_s = time.monotonic()
                gaps.append(0.0 if last_s is None else now_s - last_s)
                last_s = now_s
        assert max(gaps) < 0.4
        assert len(gaps) > 10


async def test_a_deadline_passes_on_a_stream_that_runs(rig: Rig) -> None:
    node = await rig.add_node("n1", SLOW)
    with pytest.raises(ServeError) as caught:
        await rig.ask(question("r1", max_tokens=1000), timeout_s=0.5)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert await until(lambda: node.idle) < 1.0
