"""Streams: what they yield, how they end, and that the server hears of it."""

from __future__ import annotations

import asyncio
import gc

import pytest

import tidegate
from tidegate.routing.domain import Explanation
from tidegate.testing import FakeGateway, Hang, Pause, Together, answer, default_route

OTHER = default_route(node_id="other", tier=tidegate.Tier.CLOUD)
RESTART = tidegate.Restarted(attempt_no=2, cause="node_lost", route=OTHER)


async def test_the_smallest_example(gateway: FakeGateway) -> None:
    texts = []
    async with tidegate.Client(gateway.address) as client:
        async for chunk in client.generate("a b c", budget=tidegate.Budget(ttft_ms=300)):
            texts.append(chunk.text)
    assert texts == ["a", "b", "c"]
    assert gateway.requests[0].budget == tidegate.Budget(ttft_ms=300)
    assert gateway.cancelled == []


async def test_what_a_stream_tells(gateway: FakeGateway, client: tidegate.Client) -> None:
    stream = client.generate("a b", request_id="r-1", deadline_s=5)
    assert (stream.accepted, stream.finished, stream.text, stream.ttft_ms) == (None, None, "", None)
    assert [chunk.first_index async for chunk in stream] == [0, 1]
    assert stream.accepted is not None
    assert stream.finished is not None
    assert stream.ttft_ms is not None
    assert stream.ttft_ms > 0
    completion = stream.completion()
    assert (completion.text, completion.request_id, completion.token_ids) == ("ab", "r-1", (0, 1))
    assert completion.route == default_route()
    assert completion.usage.completion_tokens == 2
    assert completion.timings.ttft_ms == 2.0
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    remaining_ms = gateway.requests[0].remaining_ms
    assert remaining_ms is not None
    # gRPC rounds a deadline up on the wire, by up to a hundredth.
    assert 3_000 < remaining_ms <= 5_050


async def test_events_that_share_a_message_come_one_by_one(
    gateway: FakeGateway, client: tidegate.Client
) -> None:
    events = answer("a", "b")
    gateway.script(Together(events[:2]), Together(events[2:]))
    stream = client.generate("hi")
    assert [event async for event in stream.events()] == list(events)
    assert stream.text == "ab"


async def test_nothing_is_sent_before_iteration(gateway: FakeGateway, client: tidegate.Client) -> None:
    stream = client.generate("hi")
    await client.nodes()
    assert gateway.calls == 1
    with pytest.raises(tidegate.TidegateError):
        stream.completion()


async def test_explanation_comes_with_the_answer(gateway: FakeGateway, client: tidegate.Client) -> None:
    explanation = Explanation(filtered={"model": 1}, prompt_tokens=3)
    accepted = tidegate.Accepted(default_route(), explanation)
    gateway.script(accepted, *answer("x", accept=False))
    completion = await client.complete("hi", explain=True)
    assert completion.explanation == explanation
    assert gateway.requests[0].explain


async def _started(gateway: FakeGateway, client: tidegate.Client) -> tidegate.GenerateStream:
    gateway.script(*answer("x", finish=False), Hang())
    stream = client.generate("hi")
    await anext(stream)
    return stream


async def test_closing_cancels_at_the_server(gateway: FakeGateway, client: tidegate.Client) -> None:
    stream = await _started(gateway, client)
    await client.nodes()
    assert gateway.cancelled == []
    await stream.aclose()
    await stream.aclose()
    async with asyncio.timeout(5):
        await gateway.wait_cancelled()
    with pytest.raises(tidegate.Cancelled):
        await anext(stream)


async def test_leaving_a_streams_block_cancels(gateway: FakeGateway, client: tidegate.Client) -> None:
    gateway.script(*answer("x", finish=False), Hang())
    async with client.generate("hi") as stream:
        async for _ in stream:
            break
    async with asyncio.timeout(5):
        await gateway.wait_cancelled()


async def test_leaving_the_clients_block_cancels_all_streams(gateway: FakeGateway) -> None:
    async with tidegate.Client(gateway.address) as client:
        streams = [await _started(gateway, client) for _ in range(3)]
        reader = asyncio.create_task(anext(streams[0]))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await gateway.wait_cancelled(3)
        with pytest.raises(tidegate.Cancelled):
            await reader
    with pytest.raises(tidegate.Cancelled):
        await client.nodes()
    with pytest.raises(tidegate.Cancelled):
        await client.complete("hi")


async def test_closing_the_client_ends_single_calls(gateway: FakeGateway) -> None:
    async with tidegate.Client(gateway.address) as client:
        gateway.script(Hang())
        waiting = asyncio.create_task(client.complete("hi"))
        async with asyncio.timeout(5):
            await gateway.wait_requests()
    async with asyncio.timeout(5):
        with pytest.raises(tidegate.Cancelled):
            await waiting


async def test_a_dropped_stream_cancels(gateway: FakeGateway, client: tidegate.Client) -> None:
    gc.disable()
    try:
        gateway.script(*answer("x", finish=False), Hang())
        async for _ in client.generate("hi"):
            break
        async with asyncio.timeout(5):
            await gateway.wait_cancelled()
    finally:
        gc.enable()


async def test_a_cancelled_task_cancels_and_stays_cancelled(
    gateway: FakeGateway, client: tidegate.Client
) -> None:
    gateway.script(Hang())
    task = asyncio.create_task(client.complete("hi"))
    async with asyncio.timeout(5):
        await gateway.wait_requests()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gateway.wait_cancelled()
    assert gateway.calls == 1


async def test_the_deadline_ends_the_call_at_both_ends(gateway: FakeGateway, client: tidegate.Client) -> None:
    gateway.script(*answer("x", finish=False), Hang())
    stream = client.generate("hi", deadline_s=0.2)
    with pytest.raises(tidegate.DeadlineExceeded):
        async for _ in stream:
            pass
    assert stream.text == "x"
    async with asyncio.timeout(5):
        await gateway.wait_cancelled()


async def test_a_restart_is_never_silent(gateway: FakeGateway, client: tidegate.Client) -> None:
    gateway.script(*answer("old", finish=False), RESTART, Hang())
    stream = client.generate("hi")
    assert (await anext(stream)).text == "old"
    with pytest.raises(tidegate.StreamRestarted) as caught:
        await anext(stream)
    assert caught.value.event == RESTART
    async with asyncio.timeout(5):
        await gateway.wait_cancelled()


async def test_a_restart_before_any_output_voids_nothing(
    gateway: FakeGateway, client: tidegate.Client
) -> None:
    gateway.script(*answer(finish=False), RESTART, *answer("new", attempt_no=2, accept=False))
    stream = client.generate("hi")
    assert [chunk.text async for chunk in stream] == ["new"]
    assert stream.restarts == (RESTART,)


async def test_reset_goes_on_with_the_new_answer(gateway: FakeGateway, client: tidegate.Client) -> None:
    script = (*answer("old", finish=False), RESTART, *answer("new", attempt_no=2, accept=False))
    gateway.script(*script)
    stream = client.generate("hi", on_restart="reset")
    assert [chunk.attempt_no async for chunk in stream] == [1, 2]
    assert (stream.text, stream.restarts, stream.route) == ("new", (RESTART,), OTHER)
    gateway.script(*script)
    completion = await client.complete("hi")
    assert (completion.text, completion.token_ids, completion.restarts) == ("new", (0,), (RESTART,))
    assert completion.route == OTHER


async def test_events_show_everything(gateway: FakeGateway, client: tidegate.Client) -> None:
    gateway.script(*answer("old", finish=False), RESTART, *answer("new", attempt_no=2, accept=False))
    kinds = [type(event).__name__ async for event in client.generate("hi").events()]
    assert kinds == ["Accepted", "Chunk", "Restarted", "Chunk", "Finished"]


def test_on_restart_must_be_a_known_word() -> None:
    with pytest.raises(ValueError, match="on_restart"):
        tidegate.Client("localhost:1").generate("hi", on_restart="ignore")  # type: ignore[arg-type]


async def test_fleet_is_watched_across_a_restart(gateway: FakeGateway, client: tidegate.Client) -> None:
    async with asyncio.timeout(10), client.watch_fleet() as watch:
        assert await anext(watch) == ()
        await gateway.stop()
        await gateway.start()
        assert await anext(watch) == ()
    assert gateway.calls >= 2


async def test_slow_chunks_arrive_one_by_one(gateway: FakeGateway, client: tidegate.Client) -> None:
    gateway.script(*answer("a", finish=False), Pause(0.05), *answer("b", first_index=1, accept=False))
    stream = client.generate("hi")
    first = await anext(stream)
    assert (first.text, stream.finished) == ("a", None)
    assert [chunk.text async for chunk in stream] == ["b"]


def test_a_client_belongs_to_one_event_loop() -> None:
    async def use(client: tidegate.Client, close: bool) -> None:
        async with FakeGateway():
            try:
                await client.nodes(deadline_s=0.5)
            except tidegate.Unavailable:
                pass
            if close:
                await client.aclose()

    client = tidegate.Client("127.0.0.1:1", retry=tidegate.RetryPolicy(attempts=1))
    asyncio.run(use(client, close=False))
    with pytest.raises(RuntimeError, match="event loop"):
        asyncio.run(use(client, close=False))
