"""One linked node, as the gateway talks to it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from gateway.upstream.commands import CancelCommand, ControlCommand, DataCommand
from gateway.upstream.fragments import WorkQueue
from gateway.upstream.stream import AttemptStream
from tidegate.routing.domain import AttemptKey, Cause, Failure, SequenceOutput, Work


class NodeSession:
    """Work down, outputs up, for one node and one link epoch.

    The transport moves what next_control() and next_data() return onto the wire and calls deliver(),
    bounced() and acked() with what arrives. `on_open` hears of each work that
    is sent, `on_end` of each attempt that ended.
    """

    def __init__(
        self,
        node_id: str,
        link_epoch: int,
        *,
        is_proven: bool = False,
        on_open: Callable[[Work], None],
        on_first_token: Callable[[AttemptKey], None],
        on_end: Callable[[AttemptKey], None],
    ) -> None:
        self.node_id = node_id
        self.link_epoch = link_epoch
        self.is_proven = is_proven
        self._on_open = on_open
        self._on_first_token = on_first_token
        self._on_end = on_end
        self._attempts: dict[AttemptKey, AttemptStream] = {}
        self._work = WorkQueue()
        self._control: deque[ControlCommand] = deque()
        self._control_wake = asyncio.Event()
        self._work_seq = 0
        self.closed = asyncio.Event()
        self.close_reason = ""

    @property
    def running(self) -> int:
        return len(self._attempts)

    def open(self, work: Work) -> AttemptStream:
        """Sends the work and returns its stream; never blocks."""
        self._work_seq += 1
        work = replace(work, work_seq=self._work_seq)
        stream = AttemptStream(
            work.key,
            work.credits,
            max_tokens=work.max_tokens,
            start_index=work.start_index,
            grant=self._work.grant,
            cancel=self._cancel,
        )
        if self.closed.is_set():
            stream.fail(Failure(Cause.NODE_LOST, "the link to the node is gone"))
            return stream
        self._attempts[work.key] = stream
        self._on_open(work)
        self._work.put(work)
        return stream

    def _cancel(self, key: AttemptKey) -> None:
        if self._attempts.pop(key, None) is None:
            return
        self._on_end(key)
        if not self._work.drop(key):
            self.send(CancelCommand(key))

    def deliver(self, outputs: Sequence[SequenceOutput]) -> None:
        for output in outputs:
            stream = self._attempts.get(output.key)
            if stream is None:
                continue
            if output.first_token is not None:
                self._on_first_token(output.key)
            if output.finish is not None:
                del self._attempts[output.key]
                self._on_end(output.key)
            stream.put(output)

    def bounced(self, key: AttemptKey, failure: Failure) -> None:
        stream = self._attempts.pop(key, None)
        if stream is not None:
            self._work.drop(key)
            self._on_end(key)
            stream.fail(failure)

    def acked(self, nbytes: int) -> None:
        self._work.acked(nbytes)

    def send(self, command: ControlCommand) -> None:
        self._control.append(command)
        self._control_wake.set()

    async def next_control(self) -> ControlCommand:
        while not self._control:
            self._control_wake.clear()
            await self._control_wake.wait()
        return self._control.popleft()

    async def next_data(self) -> DataCommand:
        return await self._work.next()

    def close(self, detail: str, cause: Cause = Cause.NODE_LOST) -> None:
        """The link is gone: every running attempt ends with `cause` at once."""
        if self.closed.is_set():
            return
        self.closed.set()
        self.close_reason = detail
        attempts, self._attempts = self._attempts, {}
        for key, stream in attempts.items():
            self._on_end(key)
            stream.fail(Failure(cause, detail))
