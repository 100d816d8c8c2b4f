"""`tidegate up` and `tidegate demo` as processes: they come up, and nothing outlives them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

import tidegate

UP_S = 40.0
END_S = 5.0


@dataclass(slots=True)
class Command:
    """A running `tidegate` in a session of its own, and the lines of its stdout so far."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    async def line_with(self, text: str) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(UP_S):
            async for raw in self.process.stdout:
                self.lines.append(raw.decode().rstrip())
                if text in self.lines[-1]:
                    return self.lines[-1]
        raise AssertionError(f"ended without {text!r}: {self.lines}, {await self.error()}")

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    async def error(self) -> str:
        """Its stderr, once it has ended by itself."""
        _, err = await asyncio.wait_for(self.process.communicate(), 20.0)
        return err.decode()

    async def end(self, number: signal.Signals) -> tuple[int, str, float]:
        """Exit code, stderr, and the seconds it took."""
        os.kill(self.pid, number)
        began_s = time.monotonic()
        _, err = await asyncio.wait_for(self.process.communicate(), 20.0)
        assert self.process.returncode is not None
        return self.process.returncode, err.decode(), time.monotonic() - began_s


@asynccontextmanager
async def tidegate_command(*args: str, tmp: Path) -> AsyncIterator[Command]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tidegate_cli", *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(os.environ) | {"TMPDIR": str(tmp)},
        start_new_session=True,
    )
    started = Command(process)
    family: list[psutil.Process] = []
    try:
        yield started
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = started.family()
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        if process.returncode is None:
            process.kill()
        await process.communicate()


def folders(tmp: Path) -> list[str]:
    """Folders of stacks that are still there."""
    return [path.name for path in tmp.glob("tidegate-*")]


def left(family: list[psutil.Process], limit_s: float = 1.0) -> list[str]:
    """Those still there after limit_s. A zombie is gone: whoever inherited it may be slow to bury it."""
    deadline_s = time.monotonic() + limit_s
    while (there := [p for p in family if _runs(p)]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return [str(p) for p in there]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_up_serves_and_its_end_is_everybody_s(tmp_path: Path, number: signal.Signals) -> None:
    async with tidegate_command("up", "--free-ports", "--engine", "oracle", tmp=tmp_path) as up:
        said = await up.line_with("up: gRPC ")
        address = said.split()[2].rstrip(",")
        await up.line_with("try: tidegate chat --gateway " + address)
        async with tidegate.Client(address) as client:
            answer = await client.complete("hello", max_tokens=4)
            # Something is running while it is told to end.
            long = asyncio.create_task(client.complete("a long one", max_tokens=2000))
            await asyncio.sleep(0.3)
            family = up.family()
            code, err, took_s = await up.end(number)
            with pytest.raises(tidegate.TidegateError):
                await long
    assert answer.usage.completion_tokens == 4
    assert len(family) >= 6
    assert (code, err) == (0, "")
    assert took_s < END_S
    assert left(family) == []
    assert folders(tmp_path) == []


async def test_up_that_is_killed_takes_its_children_along(tmp_path: Path) -> None:
    async with tidegate_command("up", "--free-ports", "--engine", "oracle", tmp=tmp_path) as up:
        await up.line_with("try: ")
        family = up.family()
        up.process.kill()
        await up.process.communicate()
        assert left(family, END_S) == []
    assert len(family) >= 6


async def test_up_ends_while_it_is_still_starting(tmp_path: Path) -> None:
    async with tidegate_command("up", "--free-ports", "--engine", "oracle", tmp=tmp_path) as up:
        await up.line_with("starting")
        await asyncio.sleep(0.3)
        family = up.family()
        code, _, took_s = await up.end(signal.SIGINT)
    assert code == 0
    assert took_s < END_S
    assert left(family) == []


async def test_a_child_that_dies_ends_all_with_its_name_and_keeps_the_logs(tmp_path: Path) -> None:
    async with tidegate_command("up", "--free-ports", "--engine", "oracle", tmp=tmp_path) as up:
        await up.line_with("try: ")
        family = up.family()
        (edge,) = [p for p in family if "edge-b.toml" in " ".join(p.cmdline())]
        edge.kill()
        folder = (await up.line_with("logs: ")).removeprefix("logs: ")
        err = await up.error()
    assert up.process.returncode == 1
    assert err.startswith("tidegate: edge-b ended: ")
    assert err.count("\n") == 1
    assert left(family) == []
    assert "gateway is up" in (Path(folder) / "gateway.log").read_text()


async def test_busy_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Held by somebody else already: just as good.
        with contextlib.suppress(OSError):
            holder.bind(("127.0.0.1", 50053))
            holder.listen()
        async with tidegate_command("up", "--engine", "oracle", tmp=tmp_path) as up:
            err = await up.error()
    assert up.process.returncode == 1
    assert err.count("\n") == 1
    assert err.startswith("tidegate: port ")
    assert "is in use: stop the program that holds it, or pass --free-ports" in err
    assert folders(tmp_path) == []


async def test_demo_behaves_and_says_so_in_json(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "only one prompt, größer als keiner"}\n')
    args = ("demo", "--free-ports", "--engine", "oracle", "--acts", "acde", "--json")
    async with tidegate_command(*args, "--prompts", str(prompts), tmp=tmp_path) as demo:
        out, err = await asyncio.wait_for(demo.process.communicate(), 100.0)
    result = json.loads(out)
    assert demo.process.returncode == 0, err.decode()
    assert result["behaved"] is True
    assert [act["act"] for act in result["acts"]] == ["routes", "kill", "restricted", "offline"]
    for act in result["acts"]:
        assert act["rows"]
        assert all(check["holds"] for check in act["checks"]), act
    # People see the same on stderr.
    assert b"all acts behaved" in err
    assert folders(tmp_path) == []


async def test_demo_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    args = ("demo", "--free-ports", "--engine", "oracle", "--acts", "c")
    async with tidegate_command(*args, tmp=tmp_path) as demo:
        await demo.line_with("c. kill -9")
        family = demo.family()
        code, err, took_s = await demo.end(signal.SIGTERM)
    assert (code, err) == (128 + signal.SIGTERM, "")
    assert took_s < END_S
    assert len(family) >= 6
    assert left(family) == []
