"""The guard: what it ends, and what it leaves alone."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tidegate_cli.stack.guard import sessions_left

OWNER = """
    import pathlib, sys, time
    from tidegate_cli.stack.process import Child, Guard
    guard = Guard()
    child = Child("c", [sys.executable, "-c", {source!r}], pathlib.Path({log!r}))
    child.start()
    guard.watch(child)
    print(child.pid, guard._process.pid, flush=True)
    sys.stdin.readline()
    if {tidy}:
        child.kill_session()
        guard.close()
"""
PLAIN = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ([], set()),
        (["11\n", "12\n"], {11, 12}),
        (["11\n", "-11\n", "12\n"], {12}),
        (["11\n", "done\n"], set()),
        (["-5\n", "\n", "11"], {11}),
    ],
)
def test_what_nobody_has_ended(lines: list[str], left: set[int]) -> None:
    assert sessions_left(lines) == left


async def owner(log: Path, source: str, *, tidy: bool) -> tuple[asyncio.subprocess.Process, list[int]]:
    """A process that owns a child and a guard; their PIDs."""
    code = textwrap.dedent(OWNER).format(source=source, log=str(log), tidy=tidy)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", code),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = await asyncio.wait_for(process.stdout.readline(), 20.0)
    return process, [int(word) for word in said.split()]


def gone(pids: list[int], limit_s: float) -> bool:
    """A zombie is gone: whoever inherited it may be slow to bury it."""
    deadline_s = time.monotonic() + limit_s
    while any(map(runs, pids)):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("source", "limit_s"), [(PLAIN, 5.0), (DEAF, 8.0)])
async def test_children_of_a_killed_owner_are_ended(tmp_path: Path, source: str, limit_s: float) -> None:
    process, pids = await owner(tmp_path / "log", source, tidy=False)
    await asyncio.sleep(0.2)
    assert not gone(pids, 0.0)
    process.kill()
    await process.communicate()
    assert await asyncio.to_thread(gone, pids, limit_s)


async def test_an_owner_that_tidies_up_needs_no_guard(tmp_path: Path) -> None:
    process, pids = await owner(tmp_path / "log", PLAIN, tidy=True)
    await process.communicate(b"\n")
    assert process.returncode == 0
    assert gone(pids, 1.0)
