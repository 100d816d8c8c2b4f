"""What goes up a link's data stream, written by one loop because gRPC takes one write at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from tidegate.link import codec
from tidegate.link.outbox import Outbox
from tidegate.node.v1 import node_pb2


class Uplink:
    """Replies first, then all outputs that their credits allow."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._replies: deque[node_pb2.DataRequest] = deque()
        self._finishing = False
        self.outbox = Outbox(self._changed)

    def reply(self, message: node_pb2.DataRequest) -> None:
        self._replies.append(message)
        self._changed.set()

    def finish(self) -> None:
        """Ends the stream from this side once nothing is left.

        A cancelled stream loses what the peer has not read yet, however long ago it was written. After the
        half-close the peer reads everything and then ends the stream: that is how this side knows.
        """
        self._finishing = True
        self._changed.set()

    async def run(self, data: Any) -> None:
        """Writes until cancelled. Raises what the stream's writes raise."""
        while True:
            self._changed.clear()
            while (message := self._next()) is not None:
                await data.write(message)
            if self._finishing and self.outbox.empty:
                await data.done_writing()
                await asyncio.Event().wait()
            await self._changed.wait()

    def _next(self) -> node_pb2.DataRequest | None:
        if self._replies:
            return self._replies.popleft()
        outputs = self.outbox.pop()
        if not outputs:
            return None
        batch = node_pb2.ChunkBatch(outputs=[codec.output_to_pb(o) for o in outputs])
        return node_pb2.DataRequest(chunk_batch=batch)
