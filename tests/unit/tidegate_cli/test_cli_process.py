"""Child processes: ready, dead on arrival, too slow, stopped in time, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest

from tidegate_cli.stack import Child, ChildFailed
from tidegate_cli.stack.process import python_module

Run = Callable[[str], Child]

HELPER = (
    "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
)


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """Starts a child that runs this Python source; all are ended."""
    async with AsyncExitStack() as stack:

        def start(source: str) -> Child:
            child = Child("thing", [sys.executable, "-u", "-c", source], tmp_path / "thing.log")
            child.start()
            stack.push_async_callback(child.stop, 0.0)
            return child

        yield start


async def said(child: Child, text: str) -> None:
    async with asyncio.timeout(10):
        while text not in child.log_file.read_text():
            await asyncio.sleep(0.01)


async def never() -> bool:
    return False


async def test_ready_once_its_probe_says_so(run: Run, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    child = run(f"import pathlib, time; pathlib.Path({str(flag)!r}).touch(); time.sleep(60)")

    async def there() -> bool:
        return flag.exists()

    await child.wait_ready(there, 10.0)
    assert child.alive
    assert os.getsid(child.pid) == child.pid != os.getsid(0)


async def test_early_death_is_told_with_its_last_line(run: Run) -> None:
    child = run("print('loading'); print('port 80 is in use: stop the other one\\n'); raise SystemExit(1)")
    with pytest.raises(
        ChildFailed, match=r"^thing ended while starting: port 80 is in use: stop the other one$"
    ):
        await child.wait_ready(never, 10.0)


async def test_a_dead_child_is_not_ready_even_where_its_port_is_answered(run: Run) -> None:
    child = run("")
    async with asyncio.timeout(10):
        while child.alive:
            await asyncio.sleep(0.01)

    async def somebody_answers() -> bool:
        return True

    with pytest.raises(
        ChildFailed, match=r"^thing ended while starting: no output; its log is .*thing\.log$"
    ):
        await child.wait_ready(somebody_answers, 10.0)


async def test_last_line_is_of_this_run_not_of_the_one_before(run: Run) -> None:
    first = run("print('first words')")
    await said(first, "first words")
    second = run("import time; time.sleep(60)")
    assert second.last_line().startswith("no output")


async def test_too_slow_is_told_with_the_log(run: Run) -> None:
    child = run("import time; time.sleep(60)")
    with pytest.raises(ChildFailed, match=r"^thing was not ready after 0 s; its log is "):
        await child.wait_ready(never, 0.1)
    assert child.alive


async def test_program_that_does_not_exist(tmp_path: Path) -> None:
    child = Child("ghost", ["/nowhere/ghost"], tmp_path / "log")
    with pytest.raises(ChildFailed, match=r"^ghost cannot be started: "):
        child.start()
    assert not child.alive
    with pytest.raises(ChildFailed, match="never started"):
        _ = child.pid
    child.kill()
    await child.stop(0.0)


async def test_asked_to_stop_it_may_clean_up(run: Run) -> None:
    child = run(
        "import os, signal, sys, time\n"
        "def end(*_): print('cleaned up'); sys.exit(0)\n"
        # One write: print() may be struck between the word and the end of its line.
        "signal.signal(signal.SIGTERM, end); os.write(1, b'up\\n'); time.sleep(60)"
    )
    await said(child, "up")
    began_s = time.monotonic()
    await child.stop(5.0)
    assert time.monotonic() - began_s < 3.0
    assert child.last_line() == "cleaned up"
    await child.stop(5.0)


async def test_stop_is_bounded_for_one_that_does_not_listen(run: Run) -> None:
    child = run(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)"
    )
    await said(child, "up")
    began_s = time.monotonic()
    await child.stop(0.3)
    assert 0.3 <= time.monotonic() - began_s < 2.0
    assert not child.alive


async def test_kill_is_of_the_child_alone_and_stop_of_its_whole_session(run: Run) -> None:
    child = run(HELPER + "print(p.pid, 'helps'); p.wait()")
    await said(child, "helps")
    helper = psutil.Process(int(child.last_line().split()[0]))
    child.kill()
    assert not child.alive
    assert helper.status() != psutil.STATUS_ZOMBIE
    await child.stop(1.0)
    gone, _ = psutil.wait_procs([helper], timeout=5)
    assert gone or helper.status() == psutil.STATUS_ZOMBIE


def test_modules_run_with_this_interpreter() -> None:
    assert python_module("gateway", "--config", "x") == [sys.executable, "-m", "gateway", "--config", "x"]
