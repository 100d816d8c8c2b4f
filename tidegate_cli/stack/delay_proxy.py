"""A TCP proxy that adds a fixed delay each way: on one machine, the distance to a cloud.

Run as `python -m tidegate_cli.stack.delay_proxy LISTEN_PORT TARGET_PORT ONE_WAY_MS`. Bytes keep their order
and their timing among each other; bandwidth is not limited.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import deque

READ_BYTES = 65536


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Moves bytes from reader to writer, each piece delay_s after it was read."""
    loop = asyncio.get_running_loop()
    waiting: deque[tuple[float, bytes]] = deque()
    wake = asyncio.Event()

    async def send() -> None:
        while True:
            while not waiting:
                wake.clear()
                await wake.wait()
            due_s, data = waiting.popleft()
            await asyncio.sleep(due_s - loop.time())
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    sender = asyncio.create_task(send())
    try:
        while True:
            data = await reader.read(READ_BYTES)
            waiting.append((loop.time() + delay_s, data))
            wake.set()
            if not data:
                break
        await sender
    finally:
        sender.cancel()
        writer.close()


async def serve(listen_port: int, target_port: int, delay_s: float) -> None:
    """Runs until SIGTERM or SIGINT."""
    links: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target_port)
        except OSError:
            writer.close()
            return
        ways = (_pump(reader, far_writer, delay_s), _pump(far_reader, writer, delay_s))
        for way in ways:
            task = asyncio.create_task(_quiet(way))
            links.add(task)
            task.add_done_callback(links.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", listen_port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()
    for task in list(links):
        task.cancel()
    await asyncio.gather(*links, return_exceptions=True)


async def _quiet(way: asyncio.Future[None] | object) -> None:
    with contextlib.suppress(OSError):
        await way  # type: ignore[misc]


def main(argv: list[str]) -> int:
    listen_port, target_port, one_way_ms = int(argv[0]), int(argv[1]), float(argv[2])
    asyncio.run(serve(listen_port, target_port, one_way_ms / 1000))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
