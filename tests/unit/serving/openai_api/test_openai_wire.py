"""Clients that leave, stall or dawdle: nothing of them may hold an engine slot."""

from __future__ import annotations

import asyncio
import json
import socket
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from openai_front_fakes import CHAT, DONE, ROUTE, ScriptedBackend, chunks, raw_request, serve

from serving.openai_api import FrontOptions, ModelCard
from tidegate.routing.domain import Accepted, Chunk, GenerateEvent, GenerateRequest

STREAM = json.dumps(CHAT | {"stream": True}).encode()
WHOLE = json.dumps(CHAT).encode()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


@pytest.mark.parametrize("body", [STREAM, WHOLE])
@pytest.mark.parametrize("before", [[], [Accepted(ROUTE), *chunks("a")]])
async def test_a_client_that_leaves_cancels_its_generation(body: bytes, before: list[GenerateEvent]) -> None:
    backend = ScriptedBackend([*before, asyncio.Event()])
    async with serve(backend) as front:
        async with connected(front.port) as (reader, writer):
            writer.write(raw_request(body))
            if before and body is STREAM:
                await reader.readuntil(b'"a"')
            await asyncio.wait_for(backend.started.wait(), 1)
            assert not backend.ended.is_set()
        await asyncio.wait_for(backend.ended.wait(), 1)
    assert not backend.finished


class Flood:
    """Streams `count` chunks of 32 KiB as fast as they are taken."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.sent = 0
        self.ended = asyncio.Event()
        self.finished = False

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        try:
            yield Accepted(ROUTE)
            for index in range(self._count):
                self.sent = index
                yield Chunk(1, index, 1, "x" * 32768)
            yield DONE
            self.finished = True
        finally:
            self.ended.set()

    def models(self, tenant: str) -> Sequence[ModelCard]:
        return []


def narrow_socket(port: int) -> socket.socket:
    """A client whose receive buffer stays small."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.connect(("127.0.0.1", port))
    sock.sendall(raw_request(STREAM))
    return sock


async def test_a_reader_that_stops_is_cut_and_its_generation_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without the kernel's help, which would cut it too.
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    flood = Flood(10_000)
    async with serve(flood, FrontOptions(write_stall_s=0.3)) as front:
        with narrow_socket(front.port):
            await asyncio.wait_for(flood.ended.wait(), 10)
    assert not flood.finished
    assert flood.sent < 9_000


async def test_a_slow_reader_that_goes_on_is_not_cut() -> None:
    flood = Flood(200)
    async with serve(flood, FrontOptions(write_stall_s=2.0)) as front:
        async with connected(front.port) as (reader, writer):
            writer.write(raw_request(STREAM))
            size = 0
            while not flood.ended.is_set() or size < 200 * 32768:
                piece = await reader.read(262144)
                assert piece
                size += len(piece)
                await asyncio.sleep(0.005)
    assert flood.finished


@pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux can bound unacknowledged bytes"
)
async def test_unacknowledged_bytes_are_bounded_too() -> None:
    # Less than the kernel takes, so that no write of ours ever waits.
    backend = ScriptedBackend([Accepted(ROUTE), *chunks("x" * 32768, "y" * 32768), asyncio.Event()])
    async with serve(backend, FrontOptions(write_stall_s=0.5)) as front:
        with narrow_socket(front.port):
            await asyncio.wait_for(backend.ended.wait(), 10)
    assert not backend.finished


class Iterator:
    """Events from an object that is no generator; counts its closing."""

    def __init__(self) -> None:
        events: list[GenerateEvent] = [Accepted(ROUTE), *chunks("a"), DONE]
        self._events = iter(events)
        self.closed = 0

    def __aiter__(self) -> Iterator:
        return self

    async def __anext__(self) -> GenerateEvent:
        try:
            return next(self._events)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("stream", [False, True])
async def test_any_iterator_is_closed(stream: bool) -> None:
    events = Iterator()

    class Backend(ScriptedBackend):
        def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
            return events

    async with serve(Backend()) as front:
        assert (await front.post(CHAT | {"stream": stream}))[0] == 200
    assert events.closed == 1


async def test_a_body_over_the_limit_is_refused_before_and_while_it_is_read() -> None:
    backend = ScriptedBackend()
    big = CHAT | {"user": "x" * 3000}
    async with serve(backend, FrontOptions(max_body_bytes=2000)) as front:
        status, body, _ = await front.post(big)
        assert (status, body["error"]["code"]) == (413, "body_too_large")
        async with connected(front.port) as (reader, writer):
            head = raw_request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
            writer.write(head + b"9c4\r\n" + b" " * 2500 + b"\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        assert backend.requests == []
        assert (await front.post(CHAT))[0] == 200


async def test_a_body_that_does_not_come_is_a_408_and_the_connection_ends() -> None:
    backend = ScriptedBackend()
    options = FrontOptions(body_timeout_s=0.2, linger_s=0.1)
    async with serve(backend, options) as front:
        async with connected(front.port) as (reader, writer):
            writer.write(raw_request(b'{"messages"', length=400))
            answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"body_timeout"' in answer
    assert backend.requests == []


async def test_a_head_that_does_not_come_ends_the_connection() -> None:
    async with serve(ScriptedBackend(), FrontOptions(keepalive_s=0.2)) as front:
        async with connected(front.port) as (reader, writer):
            writer.write(b"POST /v1/chat")
            assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_a_client_that_leaves_in_its_body_starts_nothing() -> None:
    backend = ScriptedBackend()
    async with serve(backend) as front:
        async with connected(front.port) as (_, writer):
            writer.write(raw_request(b'{"messages"', length=400))
            await asyncio.sleep(0.02)
        assert (await front.post(CHAT))[0] == 200
    assert len(backend.requests) == 1


async def test_a_gzip_bomb_stops_at_the_limit_and_a_broken_one_is_a_400() -> None:
    bomb = zlib.compressobj(wbits=31)
    packed = bomb.compress(b" " * 12_000_000) + bomb.flush()
    async with serve(ScriptedBackend()) as front:
        status, body, _ = await front.post(packed, headers={"Content-Encoding": "gzip"})
        assert (status, body["error"]["code"]) == (413, "body_too_large")
        status, body, _ = await front.post(b"no gzip at all", headers={"Content-Encoding": "gzip"})
        assert (status, body["error"]["code"]) == (400, "bad_body")


@pytest.mark.parametrize("header", [b"", b"Connection: keep-alive\r\n"])
async def test_http_1_0_clients_get_a_plain_stream_that_ends(header: bytes) -> None:
    async with serve(ScriptedBackend()) as front:
        async with connected(front.port) as (reader, writer):
            writer.write(raw_request(STREAM).replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n" + header, 1))
            answer = await asyncio.wait_for(reader.read(), 5)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert body.startswith(b"data: ")
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(("body", "told"), [(STREAM, b'data: {"error":'), (WHOLE, b"HTTP/1.1 503")])
async def test_stopping_the_server_is_bounded_and_tells_running_clients(body: bytes, told: bytes) -> None:
    backend = ScriptedBackend([Accepted(ROUTE), *chunks("a"), asyncio.Event()])
    loop = asyncio.get_running_loop()
    async with serve(backend, FrontOptions(shutdown_s=0.2)) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(raw_request(body))
        await asyncio.wait_for(backend.started.wait(), 1)
        began_s = loop.time()
    assert 0.15 < loop.time() - began_s < 2
    assert backend.ended.is_set()
    answer = await asyncio.wait_for(reader.read(), 1)
    assert told in answer
    assert b'"shutting_down"' in answer
    writer.close()


async def test_an_answer_that_ends_within_the_grace_is_whole() -> None:
    go_on = asyncio.Event()
    backend = ScriptedBackend([Accepted(ROUTE), *chunks("a"), go_on, *chunks("b"), DONE])
    loop = asyncio.get_running_loop()
    async with serve(backend, FrontOptions(shutdown_s=5)) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(raw_request(STREAM))
        await reader.readuntil(b'"a"')
        loop.call_later(0.05, go_on.set)
        began_s = loop.time()
    assert loop.time() - began_s < 3
    assert b"data: [DONE]" in await asyncio.wait_for(reader.read(), 1)
    writer.close()
