"""A TCP proxy that adds a fixed delay each way: on one machine, the distance to a cloud.

Run as a script: LISTEN_PORT TARGET_PORT ONE_WAY_MS. Bytes keep their order and their timing among each other;
bandwidth is not limited. Either side may close its half and still read.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import deque

READ_BYTES = 65536
# What may be under way in one direction: a reader that stopped is felt by the writer, as on a real path.
WINDOW_BYTES = 4 * 1024 * 1024


class _Path:
    """One direction of one connection."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the reader's end of file was passed on. Raises a group of OSErrors when a side is lost."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(reader))
            group.create_task(self._write(writer))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            while self._bytes > WINDOW_BYTES:
                await self._wait()
            data = await reader.read(READ_BYTES)
            self._under_way.append((loop.time() + self._delay_s, data))
            self._bytes += len(data)
            self._changed.set()

    async def _write(self, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._under_way:
                await self._wait()
            due_s, data = self._under_way.popleft()
            await asyncio.sleep(due_s - loop.time())
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
            self._bytes -= len(data)
            self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


async def serve(listen_port: int, target_port: int, delay_s: float) -> None:
    """Runs until SIGTERM or SIGINT. Raises OSError when the port is not to be had."""
    connections: set[asyncio.Task[None]] = set()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target_port)
            writers.append(far_writer)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_Path(delay_s).carry(reader, far_writer))
                ways.create_task(_Path(delay_s).carry(far_reader, writer))
        except* OSError:
            # A lost side; the other one is told by the close below.
            pass
        finally:
            for each in writers:
                each.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(connect(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", listen_port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()
    running = list(connections)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def main(argv: list[str]) -> int:
    listen_port, target_port, one_way_ms = int(argv[0]), int(argv[1]), float(argv[2])
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(serve(listen_port, target_port, one_way_ms / 1000))
        except OSError as error:
            sys.stderr.write(f"delay proxy: {error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
