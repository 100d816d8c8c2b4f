"""Runs long commands quietly: output to a log file, a line of progress at least every 10 seconds."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

REPORT_EVERY_S = 8.0
_POLL_S = 0.1
_STOP_GRACE_S = 5.0
_TAIL_BYTES = 16_384
_PERCENT = re.compile(r"\[ *(\d{1,3})%\]")
_NINJA = re.compile(r"\[(\d+)/(\d+)\]")
_NO_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError"
)
_ERROR = re.compile(r"^\s*(ERROR|error|fatal error|CMake Error|make: \*\*\*)\b.*|.*\berror:.*")


class StepFailed(Exception):
    """A step of the set-up failed; the text is one line that names the log."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def error(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


def run_step(
    title: str,
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    often_done: bool = False,
) -> None:
    """Runs one command to its end. Raises StepFailed with the last error line of its output.

    A step that is `often_done` already speaks up only when it takes long. The command gets a session of its
    own and no stdin, so that whatever ends us can end all of it.
    """
    if not often_done:
        say(f"{title} ...")
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    child: subprocess.Popen[bytes] | None = None
    with log.open("wb") as sink:
        try:
            with _signals_held():
                child = subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env=None if env is None else dict(env),
                    cwd=cwd,
                    start_new_session=True,
                )
            _watch(title, child, log, started)
        except BaseException:
            if child is not None:
                _stop(child)
            raise
    took_s = time.monotonic() - started
    if child.returncode != 0:
        raise StepFailed(f"{title}: failed after {took_s:.0f} s: {last_error(log)} (full output: {log})")
    if not often_done or took_s >= REPORT_EVERY_S:
        say(f"{title}: done in {took_s:.0f} s")


@contextmanager
def _signals_held() -> Iterator[None]:
    """Puts SIGINT and SIGTERM off to the end of the block, so that no child starts that nobody knows of."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda got, _: held.append(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in held:
            signal.raise_signal(late)


def _watch(title: str, child: subprocess.Popen[bytes], log: Path, started: float) -> None:
    reported = started
    while child.poll() is None:
        time.sleep(_POLL_S)
        now = time.monotonic()
        if now - reported >= REPORT_EVERY_S:
            reported = now
            share = share_done(_tail(log))
            say(f"{title}: {now - started:.0f} s" + (f", {share} %" if share is not None else ""))


def _stop(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return
        try:
            child.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
        return


def _tail(log: Path) -> str:
    with log.open("rb") as source:
        source.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return source.read().decode("utf-8", "replace")


def share_done(output: str) -> int | None:
    """The last percentage that make ([ 42%]) or ninja ([12/300]) printed, if any."""
    percents = _PERCENT.findall(output)
    if percents:
        return int(percents[-1])
    counts = _NINJA.findall(output)
    if counts and int(counts[-1][1]) > 0:
        return int(counts[-1][0]) * 100 // int(counts[-1][1])
    return None


def last_error(log: Path) -> str:
    """The most telling line of a failed command's output: its last error line, else its last line."""
    text = _tail(log)
    if _NO_NETWORK.search(text):
        return (
            "the package index cannot be reached: check the network and pip's configuration (pip config list)"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or ["no output"])[-1][:300]
