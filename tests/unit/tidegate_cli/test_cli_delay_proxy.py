"""The delay proxy as a process between real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tidegate_cli.stack import Child, delay_proxy
from tidegate_cli.stack.ports import free_ports
from tidegate_cli.stack.process import python_script

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Start = Callable[[Server | None, float], Awaitable[Callable[[], Awaitable[Streams]]]]

LIMIT_S = 20.0
PROXY = Path(delay_proxy.__file__)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def end(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """start(server, one_way_ms) gives a function that connects through the proxy; None: nobody listens."""
    async with AsyncExitStack() as stack:

        async def begin(server: Server | None, one_way_ms: float) -> Callable[[], Awaitable[Streams]]:
            ports = free_ports()
            if server is not None:

                async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    stack.push_async_callback(end, writer)
                    await server(reader, writer)

                target = await asyncio.start_server(serve, "127.0.0.1", ports.http)
                stack.callback(target.close)
            args = (str(ports.grpc), str(ports.http), str(one_way_ms))
            command = python_script(PROXY, *args)
            child = Child("delay", command, tmp_path / "delay.log")
            child.start()
            stack.push_async_callback(child.stop, 2.0)
            await child.wait_ready(lambda: accepts(ports.grpc), LIMIT_S)

            async def connect() -> Streams:
                streams = await asyncio.open_connection("127.0.0.1", ports.grpc)
                stack.push_async_callback(end, streams[1])
                return streams

            return connect

        yield begin


async def round_trip_ms(connect: Callable[[], Awaitable[Streams]]) -> float:
    reader, writer = await connect()
    writer.write(b"warm")
    await reader.readexactly(4)
    best_ms = 1e9
    for _ in range(5):
        began_s = time.monotonic()
        writer.write(b"ping")
        await reader.readexactly(4)
        best_ms = min(best_ms, (time.monotonic() - began_s) * 1000)
    return best_ms


async def test_adds_its_delay_each_way_and_nothing_without_one(start: Start) -> None:
    async with asyncio.timeout(LIMIT_S):
        assert 60.0 <= await round_trip_ms(await start(echo, 30.0)) < 110.0
        # Positive control of the measurement.
        assert await round_trip_ms(await start(echo, 0.0)) < 40.0


async def test_bytes_keep_their_order_and_none_is_lost(start: Start) -> None:
    connect = await start(echo, 5.0)
    data = bytes(i * i % 251 for i in range(3_000_000))
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await connect()

        async def send() -> None:
            for at in range(0, len(data), 100_000):
                writer.write(data[at : at + 100_000])
                await writer.drain()

        sending = asyncio.create_task(send())
        assert await reader.readexactly(len(data)) == data
        await sending


async def test_a_closed_half_still_receives(start: Start) -> None:
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = await reader.read()
        writer.write(b"heard " + heard)
        writer.close()

    connect = await start(answer_at_the_end, 10.0)
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await connect()
        writer.write(b"all of it")
        writer.write_eof()
        assert await reader.read() == b"heard all of it"


async def test_target_that_is_down_closes_the_connection(start: Start) -> None:
    connect = await start(None, 5.0)
    async with asyncio.timeout(LIMIT_S):
        for _ in range(2):
            reader, _ = await connect()
            assert await reader.read() == b""


async def test_target_that_dies_closes_the_connection_after_what_it_had_sent(start: Start) -> None:
    async def speak_and_die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"last words")
        await writer.drain()
        await reader.read(1)
        writer.transport.abort()

    connect = await start(speak_and_die, 5.0)
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await connect()
        assert await reader.readexactly(10) == b"last words"
        writer.write(b"x")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_many_connections_at_once(start: Start) -> None:
    connect = await start(echo, 5.0)

    async def one(index: int) -> bytes:
        reader, writer = await connect()
        writer.write(b"%06d" % index)
        return await reader.readexactly(6)

    async with asyncio.timeout(LIMIT_S):
        answers = await asyncio.gather(*(one(i) for i in range(150)))
    assert answers == [b"%06d" % i for i in range(150)]


async def test_a_reader_that_stopped_is_felt_by_the_writer(start: Start) -> None:
    async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()

    over = asyncio.Event()
    connect = await start(never_read, 5.0)
    _, writer = await connect()
    sent = 0

    async def send() -> None:
        nonlocal sent
        while sent < 200_000_000:
            writer.write(b"x" * 1_000_000)
            sent += 1_000_000
            await writer.drain()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send(), 1.5)
    over.set()
    assert 4_000_000 <= sent < 60_000_000


async def test_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        args = (str(holder.getsockname()[1]), "1", "5")
        child = Child("delay", python_script(PROXY, *args), tmp_path / "log")
        child.start()
        async with asyncio.timeout(LIMIT_S):
            while child.alive:
                await asyncio.sleep(0.02)
    assert child.log_file.read_text().count("\n") == 1
    assert "address already in use" in child.last_line()
