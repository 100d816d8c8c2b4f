"""The blocking client behaves as the async one does."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

import tidegate
from tidegate.routing.domain import Code, ServeError
from tidegate.testing import Fail, FakeGateway, Hang, answer, default_route, serve_in_thread

FAST = tidegate.RetryPolicy(attempts=4, base_ms=2.0, max_ms=10.0)
UNAVAILABLE = Fail(grpc.StatusCode.UNAVAILABLE)
CANCELLED = Fail(grpc.StatusCode.CANCELLED)
RESTART = tidegate.Restarted(attempt_no=2, cause="node_lost", route=default_route(node_id="other"))


@pytest.fixture
def server() -> Iterator[FakeGateway]:
    with serve_in_thread(FakeGateway()) as gateway:
        yield gateway


@pytest.fixture
def sync_client(server: FakeGateway) -> Iterator[tidegate.SyncClient]:
    with tidegate.SyncClient(server.address, retry=FAST, deadline_s=10.0) as value:
        yield value


def _eventually_cancelled(server: FakeGateway, count: int = 1) -> bool:
    until = time.monotonic() + 5
    while len(server.cancelled) < count and time.monotonic() < until:
        time.sleep(0.005)
    return len(server.cancelled) == count


def test_stream_and_completion(server: FakeGateway, sync_client: tidegate.SyncClient) -> None:
    stream = sync_client.generate("a b", request_id="r-1")
    assert [chunk.text for chunk in stream] == ["a", "b"]
    assert (stream.text, stream.request_id, stream.route) == ("ab", "r-1", default_route())
    assert stream.ttft_ms is not None
    assert stream.accepted is not None
    assert stream.finished is not None
    assert sync_client.complete("x y").token_ids == (0, 1)
    assert next(stream, None) is None


def test_texts_are_embedded(sync_client: tidegate.SyncClient) -> None:
    assert sync_client.embed(["tide"]) == tidegate.Embedded(((4.0, 0.0),), tidegate.Usage(4))


def test_lists_and_explanations(server: FakeGateway, sync_client: tidegate.SyncClient) -> None:
    assert sync_client.nodes() == ()
    assert sync_client.models() == ()
    assert sync_client.explain("hi").route == sync_client.route("hi") == default_route()
    sync_client.feedback("r-1", worse=True)
    sync_client.feedback("r-1", worse=False, variant="sha256:abc")
    assert server.verdicts == [("r-1", True, ""), ("r-1", False, "sha256:abc")]
    with sync_client.watch_fleet() as watch:
        assert next(watch) == ()


@pytest.mark.parametrize("failure", [UNAVAILABLE, CANCELLED], ids=["unavailable", "servers-cancelled"])
def test_retried_with_zero_messages_only(
    server: FakeGateway, sync_client: tidegate.SyncClient, failure: Fail
) -> None:
    server.fail_next(failure, failure)
    assert sync_client.complete("a b").text == "ab"
    server.fail_next(failure)
    assert sync_client.nodes() == ()
    assert server.calls == 5
    server.script(*answer("half", finish=False), failure)
    stream = sync_client.generate("hi")
    with pytest.raises((tidegate.Unavailable, tidegate.Cancelled)):
        list(stream)
    assert (server.calls, stream.text) == (6, "half")


def test_attempts_are_bounded(server: FakeGateway, sync_client: tidegate.SyncClient) -> None:
    server.fail_next(*[UNAVAILABLE] * 10)
    with pytest.raises(tidegate.Unavailable) as caught:
        sync_client.nodes()
    assert server.calls == FAST.attempts
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_details_arrive(server: FakeGateway, sync_client: tidegate.SyncClient) -> None:
    error = ServeError(Code.RESOURCE_EXHAUSTED, "full", reason="QUEUE_FULL", retry_after_ms=700)
    server.fail_next(Fail(error))
    with pytest.raises(tidegate.Overloaded) as caught:
        sync_client.complete("hi")
    assert (caught.value.reason, caught.value.retry_after_ms) == ("QUEUE_FULL", 700.0)


def test_failover(server: FakeGateway, dead_address: str) -> None:
    addresses = [dead_address, server.address]
    with tidegate.SyncClient(addresses, retry=FAST, random=lambda: 0.0) as client:
        assert client.complete("a b").text == "ab"
        assert client.nodes() == ()


def test_deadline(server: FakeGateway, sync_client: tidegate.SyncClient) -> None:
    server.script(Hang())
    with pytest.raises(tidegate.DeadlineExceeded):
        sync_client.complete("hi", deadline_s=0.2)
    assert _eventually_cancelled(server)


def test_leaving_the_block_cancels(server: FakeGateway) -> None:
    with tidegate.SyncClient(server.address) as client:
        server.script(*answer("x", finish=False), Hang())
        stream = client.generate("hi")
        next(stream)
        assert server.cancelled == []
    assert _eventually_cancelled(server)
    for use in (lambda: next(stream), client.nodes, lambda: client.complete("hi")):
        with pytest.raises(tidegate.Cancelled):
            use()


def test_closing_from_another_thread(server: FakeGateway, sync_client: tidegate.SyncClient) -> None:
    server.script(*answer("x", finish=False), Hang())
    stream = sync_client.generate("hi")
    next(stream)
    timer = threading.Timer(0.05, stream.close)
    timer.start()
    with pytest.raises(tidegate.Cancelled):
        next(stream)
    timer.join()
    assert _eventually_cancelled(server)


def test_a_dropped_stream_cancels(server: FakeGateway, sync_client: tidegate.SyncClient) -> None:
    gc.disable()
    try:
        server.script(*answer("x", finish=False), Hang())
        for _ in sync_client.generate("hi"):
            break
        assert _eventually_cancelled(server)
    finally:
        gc.enable()


def test_restarts(server: FakeGateway, sync_client: tidegate.SyncClient) -> None:
    script = (*answer("old", finish=False), RESTART, *answer("new", attempt_no=2, accept=False))
    server.script(*script)
    with pytest.raises(tidegate.StreamRestarted):
        list(sync_client.generate("hi"))
    server.script(*script)
    with sync_client.generate("hi", on_restart="reset") as stream:
        assert [chunk.text for chunk in stream] == ["old", "new"]
    assert (stream.text, stream.restarts) == ("new", (RESTART,))
    server.script(*script)
    assert [type(e).__name__ for e in sync_client.generate("hi").events()] == [
        "Accepted",
        "Chunk",
        "Restarted",
        "Chunk",
        "Finished",
    ]
    server.script(*script)
    assert sync_client.complete("hi").text == "new"


def test_a_broken_answer_closes_the_call(server: FakeGateway, sync_client: tidegate.SyncClient) -> None:
    server.script(*answer("a", finish=False), *answer("c", first_index=2, accept=False, finish=False), Hang())
    with pytest.raises(tidegate.InternalError) as caught:
        sync_client.complete("hi")
    assert caught.value.reason == "STREAM_GAP"
    assert _eventually_cancelled(server)


def test_threads_share_a_client(server: FakeGateway, sync_client: tidegate.SyncClient) -> None:
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: texts.append(sync_client.complete(f"t{n} x").text))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert sorted(texts) == sorted(f"t{n}x" for n in range(8))
