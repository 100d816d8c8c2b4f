"""A node that is told to stop: what it has computed arrives, however slow its way up is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from gateway_rig import Rig, expected_text, question, text_of, until

from edge_node.settings import EdgeSettings
from serving.node_program import NodeProgram
from serving.settings import load_settings
from serving.startup import ProgramArgs
from tidegate.routing.domain import Finished, Health, ServeError

ANSWERS = 8
TOKENS = 100
UPLINK_BYTES_PER_S = 15_000


class SlowUplink:
    """Passes connections on to a port; what goes there is slowed down while `slow`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self.slow = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        """The port to dial."""
        # Small buffers, or the kernel swallows all that a test sends.
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        server = await asyncio.start_server(self._accept, sock=listening, limit=2048)
        try:
            yield listening.getsockname()[1]
        finally:
            server.close()
            for writer in self._writers:
                writer.close()
            await server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, far_writer]
        await asyncio.gather(
            self._pass(reader, far_writer, up=True), self._pass(far_reader, writer, up=False)
        )

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        try:
            while data := await reader.read(1024):
                if up and self.slow:
                    await asyncio.sleep(len(data) / UPLINK_BYTES_PER_S)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


def settings(folder: Path, gateway: str, **more: str) -> EdgeSettings:
    values = {
        "STATE_DIR": str(folder),
        "LINK__GATEWAYS": gateway,
        "ENGINE__KIND": "oracle",
        # Half a second of work: all answers run at once even where asking for them takes most of it.
        "ENGINE__ORACLE__DECODE": "[[1, 200], [8, 200]]",
        "ENGINE__SLOTS": "8",
        **more,
    }
    return load_settings(EdgeSettings, None, {f"TIDEGATE_EDGE__{k}": v for k, v in values.items()})


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    # A slow path must not look like a lost node.
    # The work shall be at the node, not wait in the gateway for its slow word.
    link = {"port": 0, "heartbeat_s": 1.0, "lost_after_s": 10.0}
    async with Rig(link=link, queue={"requests": 0}) as rig:
        yield rig


async def ready(rig: Rig) -> None:
    # Ready to work is not yet reachable: its data stream may still be on its way.
    await until(
        lambda: any(n.load.ready and n.health is Health.READY for n in rig.app.fleet.snapshot().nodes),
        what="the node",
    )


async def test_a_drained_node_takes_its_answers_through_a_slow_uplink(rig: Rig, tmp_path: Path) -> None:
    uplink = SlowUplink(rig.ports.link)
    async with uplink.open() as port:
        node = NodeProgram(settings(tmp_path, f"127.0.0.1:{port}"), ProgramArgs())
        stop = asyncio.Event()
        life = asyncio.create_task(node.run(stop))
        await ready(rig)
        uplink.slow = True
        questions = [question(f"r{n}", f"tell {n}", max_tokens=TOKENS) for n in range(ANSWERS)]
        answers = [asyncio.create_task(rig.ask(q)) for q in questions]
        await until(lambda: (load := node.load()) is not None and load.running == ANSWERS, what="the work")
        stop.set()
        await node.runtime.wait_drained(5.0)
        # The positive control: by now all is computed and much of it still on its way.
        assert sum(answer.done() for answer in answers) < ANSWERS
        for asked, events in zip(questions, await asyncio.gather(*answers), strict=True):
            assert isinstance(events[-1], Finished)
            assert text_of(events) == expected_text(asked)
        await asyncio.wait_for(life, 5.0)


async def test_what_the_grace_cuts_off_is_told_why(rig: Rig, tmp_path: Path) -> None:
    slow = {"DRAIN_GRACE_S": "0.3", "ENGINE__ORACLE__DECODE": "[[1, 20]]"}
    node = NodeProgram(settings(tmp_path, rig.link_address, **slow), ProgramArgs())
    stop = asyncio.Event()
    life = asyncio.create_task(node.run(stop))
    await ready(rig)
    asking = asyncio.create_task(rig.ask(question("r1", max_tokens=500)))
    await until(lambda: (load := node.load()) is not None and load.running, what="the work")
    await asyncio.sleep(0.2)
    stop.set()
    with pytest.raises(ServeError) as cut:
        await asyncio.wait_for(asking, 5.0)
    assert cut.value.reason == "DRAINING"
    await asyncio.wait_for(life, 5.0)
