"""One child process: started in its own session, watched until it is ready, ended by its PID."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path


class ChildFailed(Exception):
    """A child did not come up or went away; the message is one line."""


class Child:
    """A program of the stack. `name` is for people; its output is appended to `log_file`."""

    def __init__(
        self, name: str, command: Sequence[str], log_file: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._command = list(command)
        self._log_file = log_file
        self._environ = dict(os.environ if environ is None else environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """Raises ChildFailed when it was never started."""
        if self._process is None:
            raise ChildFailed(f"{self.name} was never started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log_file(self) -> Path:
        return self._log_file

    def start(self) -> None:
        """Raises ChildFailed when the program cannot be started at all."""
        try:
            with self._log_file.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environ,
                    start_new_session=True,
                )
        except OSError as error:
            raise ChildFailed(f"{self.name} cannot be started: {error}") from error

    async def wait_ready(self, probe: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Polls `probe` until it is true. Raises ChildFailed when the child dies or time runs out."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            # Looked at before the probe: a port may be answered by somebody else's program.
            if not self.alive:
                raise ChildFailed(f"{self.name} ended while starting: {self.last_line()}")
            if await probe():
                return
            if time.monotonic() > deadline_s:
                raise ChildFailed(
                    f"{self.name} was not ready after {timeout_s:.0f} s; its log is {self._log_file}"
                )
            await asyncio.sleep(0.05)

    def last_line(self) -> str:
        """The last line it wrote since it was started, which for our programs says why they ended."""
        try:
            lines = self._log_file.read_bytes()[self._log_start :].decode(errors="replace").split("\n")
        except OSError:
            lines = []
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][:500] if said else f"no output; its log is {self._log_file}"

    def kill(self) -> None:
        """SIGKILL to the child alone, as a crash would."""
        if self._process is not None and self.alive:
            os.kill(self.pid, signal.SIGKILL)
            self._reap(2.0)

    def terminate(self) -> None:
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)

    def kill_session(self) -> None:
        """SIGKILL to whatever is left of its session, which is ours alone; it may outlive a killed child."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._reap(2.0)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL to its whole session after grace_s at most. Idempotent."""
        self.terminate()
        deadline_s = time.monotonic() + grace_s
        while self.alive and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        self.kill_session()

    def _reap(self, timeout_s: float) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)


class Guard:
    """Ends the children should this process die without doing so itself; see guard.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            python_script(Path(__file__).with_name("guard.py")),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, child: Child) -> None:
        self._tell(str(child.pid))

    def forget(self, child: Child) -> None:
        """It was ended; its PID may be somebody else's soon."""
        self._tell(f"-{child.pid}")

    def close(self) -> None:
        """All children were ended. Idempotent."""
        self._tell("done")
        # It may not even have begun: nothing is left to wait for.
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _tell(self, word: str) -> None:
        # A guard that somebody killed guards nothing more; the stack itself goes on.
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()


def python_script(script: Path, *args: str) -> list[str]:
    """Command line that runs a file with this interpreter; unlike a module, without its packages."""
    return [sys.executable, str(script), *args]


def python_module(module: str, *args: str) -> list[str]:
    """Command line that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *args]
