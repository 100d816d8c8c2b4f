"""One child process: started in its own session, watched until it is ready, ended by its PID."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path


class ChildFailed(Exception):
    """A child did not come up or went away; the message is one line and names its log."""


class Child:
    """A program of the stack. `name` is for people; its output goes to `log_file`."""

    def __init__(
        self, name: str, command: Sequence[str], log_file: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._command = list(command)
        self._log_file = log_file
        self._environ = dict(os.environ if environ is None else environ)
        self._process: subprocess.Popen[bytes] | None = None

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
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                start_new_session=True,
            )

    async def wait_ready(self, probe: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Polls `probe` until it is true. Raises ChildFailed when the child dies or time runs out."""
        deadline_s = time.monotonic() + timeout_s
        while not await probe():
            if not self.alive:
                raise ChildFailed(f"{self.name} ended while starting: {self.last_line()}")
            if time.monotonic() > deadline_s:
                raise ChildFailed(
                    f"{self.name} was not ready after {timeout_s:.0f} s; its log is {self._log_file}"
                )
            await asyncio.sleep(0.05)

    def last_line(self) -> str:
        """The last line it wrote, which for our programs says why they ended."""
        try:
            lines = self._log_file.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:500] if lines else f"no output; its log is {self._log_file}"

    def kill(self) -> None:
        """SIGKILL to the child alone, as a crash would."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
            self._reap(2.0)

    def terminate(self) -> None:
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL to its whole session after grace_s."""
        self.terminate()
        deadline_s = time.monotonic() + grace_s
        while self.alive and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        if self._process is not None:
            # Also what a killed daemon may have left behind: the session is ours alone.
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._reap(2.0)

    def _reap(self, timeout_s: float) -> None:
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                pass


def python_module(module: str, *args: str) -> list[str]:
    """Command line that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *args]
