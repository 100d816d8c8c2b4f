"""The daemon with llama.cpp and the bundled model: real answers, and a crash of the engine survived."""

from __future__ import annotations

import os
import signal
import time

import psutil
from edge_daemon_process import Daemon, DaemonMaker

REAL = {"ENGINE__KIND": "llama_cpp", "ENGINE__SLOTS": "2", "ENGINE__LLAMA_CPP__SAMPLING__TEMPERATURE": "0"}
BACK_WITHIN_S = 30.0


def engine_child(daemon: Daemon) -> psutil.Process:
    children = psutil.Process(daemon.process.pid).children(recursive=True)
    (child,) = [child for child in children if "serving.engines.llama_cpp.child" in child.cmdline()]
    return child


def test_a_killed_engine_comes_back_and_the_daemon_lives(daemons: DaemonMaker) -> None:
    daemon = daemons.start(REAL)
    before = daemon.chat(max_tokens=8)
    assert before.status == 200
    assert before.json["usage"]["completion_tokens"] > 0

    child = engine_child(daemon)
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)
    assert daemon.ask("/healthz").status == 200

    deadline = time.monotonic() + BACK_WITHIN_S
    while (answer := daemon.chat(max_tokens=8)).status != 200:
        assert answer.status == 503
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert answer.json["choices"] == before.json["choices"]
    assert engine_child(daemon).pid != child.pid

    second = engine_child(daemon)
    code, took_s = daemon.stop()
    assert code == 0
    assert took_s < 5
    assert not second.is_running()


def test_daemon_with_the_real_engine_outside_is_small(daemons: DaemonMaker) -> None:
    daemons.is_measured = True
    daemon = daemons.start(REAL)
    assert daemon.chat(max_tokens=8).status == 200
    assert psutil.Process(daemon.process.pid).memory_info().rss < 80_000_000


def test_a_killed_daemon_takes_its_engine_with_it(daemons: DaemonMaker) -> None:
    daemon = daemons.start(REAL)
    child = engine_child(daemon)
    daemon.process.kill()
    child.wait(10)
