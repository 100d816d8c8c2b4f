"""Starts real daemon processes with the oracle engine on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_S = 20.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Daemon:
    """One running daemon. `lines` are the log lines read so far."""

    process: subprocess.Popen[str]
    port: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)

    def wait_for(self, message: str) -> dict[str, Any]:
        """Reads the log until a line with this message."""
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            line: dict[str, Any] = json.loads(raw) if raw.startswith("{") else {"msg": raw.rstrip()}
            self.lines.append(line)
            if line["msg"] == message:
                return line
        raise AssertionError(f"the daemon ended with {self.process.wait()}: {self.lines}")

    def ask(
        self, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return Answer(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def chat(self, max_tokens: int = 5) -> Answer:
        messages = [{"role": "user", "content": "tell me a story"}]
        return self.ask("/v1/chat/completions", {"messages": messages, "max_tokens": max_tokens})

    def stop(self, limit_s: float = 10.0) -> tuple[int, float]:
        """SIGTERM; the exit code and the seconds it took."""
        began = time.monotonic()
        self.process.terminate()
        self.process.communicate(timeout=limit_s)
        return self.process.returncode, time.monotonic() - began


class DaemonMaker:
    """`is_measured` daemons run without the coverage of the test run, which would count as their memory."""

    is_measured = False

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def environ(self, settings: Mapping[str, str]) -> dict[str, str]:
        dropped = ("TIDEGATE_", "COVERAGE_") if self.is_measured else ("TIDEGATE_",)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        ours = {
            "STATE_DIR": str(self._folder / "state"),
            "LOCAL_API__PORT": "0",
            "ENGINE__KIND": "oracle",
            "ENGINE__ORACLE__PACING": "0.1",
            **settings,
        }
        return kept | {f"TIDEGATE_EDGE__{name}": value for name, value in ours.items()}

    def spawn(self, settings: Mapping[str, str] = {}, *args: str) -> Daemon:
        """A daemon that may not come up; settings are environment names without their prefix."""
        process = subprocess.Popen(
            [sys.executable, "-m", "edge_node", *args],
            env=self.environ(settings),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._stack.callback(_end, process)
        return Daemon(process)

    def start(self, settings: Mapping[str, str] = {}, *args: str, ready: bool = True) -> Daemon:
        """A daemon whose API is up, and its engine too if `ready`."""
        daemon = self.spawn(settings, *args)
        address = daemon.wait_for("local API is up")["address"]
        daemon.port = int(address.rpartition(":")[2])
        if ready:
            daemon.wait_for("engine ready")
        return daemon


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()
