"""`tidegate chat` at a terminal: prompts, and the ways to leave it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tidegate.routing.domain import Code, ServeError
from tidegate.testing import Fail, FakeGateway, Hang, answer

LIMIT_S = 30.0
CTRL_C, CTRL_D = b"\x03", b"\x04"


class Terminal:
    """A chat whose standard streams are a terminal of its own."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.process = process
        self._master = master
        self.seen = ""

    async def until(self, text: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            while text not in self.seen:
                with contextlib.suppress(BlockingIOError):
                    self.seen += os.read(self._master, 4096).decode()
                await asyncio.sleep(0.01)

    def type(self, data: bytes) -> None:
        os.write(self._master, data)

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), LIMIT_S)


@asynccontextmanager
async def chat(address: str) -> AsyncIterator[Terminal]:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    # A shell would make the terminal the session's own; without that Ctrl-C reaches nobody.
    script = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    script += "from tidegate_cli.main import main; sys.exit(main(sys.argv[1:]))"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", script, "chat", "--gateway", address),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)


@pytest.mark.parametrize("end", [CTRL_C, CTRL_D, b"\n"], ids=["ctrl-c", "ctrl-d", "empty line"])
async def test_leaving_it_at_the_prompt(end: bytes) -> None:
    async with FakeGateway() as gateway, chat(gateway.address) as terminal:
        await terminal.until("you> ")
        terminal.type(b"hello\n")
        await terminal.until("[fake-node (edge, fake), TTFT 2 ms")
        await terminal.until("]\r\nyou> ")
        terminal.type(end)
        assert await terminal.ended() == 0
    assert "Traceback" not in terminal.seen


async def test_ctrl_c_in_the_middle_of_an_answer_cancels_it() -> None:
    async with FakeGateway() as gateway, chat(gateway.address) as terminal:
        gateway.script(*answer("half an answer", finish=False), Hang())
        await terminal.until("you> ")
        terminal.type(b"hello\n")
        await terminal.until("half an answer")
        terminal.type(CTRL_C)
        assert await terminal.ended() == 130
        async with asyncio.timeout(LIMIT_S):
            await gateway.wait_cancelled()
    assert "Traceback" not in terminal.seen


async def test_an_error_does_not_end_the_conversation() -> None:
    async with FakeGateway() as gateway, chat(gateway.address) as terminal:
        gateway.script(Fail(ServeError(Code.RESOURCE_EXHAUSTED, "all queues are full", reason="QUEUE_FULL")))
        await terminal.until("you> ")
        terminal.type(b"first\n")
        await terminal.until("[Overloaded: all queues are full]")
        terminal.type(b"second\n")
        await terminal.until("[fake-node (edge, fake)")
        terminal.type(CTRL_D)
        assert await terminal.ended() == 0
        # What was not answered is no part of the conversation.
        assert [m.content for m in gateway.requests[-1].messages] == ["second"]
