"""Real gateway and cloud node processes on free ports, each in its own session with a log file."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

START_S = 30.0
JOIN_TOKEN = "join-token-of-the-tests"
UPSTREAM_KEY = "sk-upstream-key-of-the-tests"


class Program:
    """A running program and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def lines(self) -> list[dict[str, Any]]:
        texts = self.log.read_text().splitlines()
        return [json.loads(text) if text.startswith("{") else {"msg": text} for text in texts]

    def wait_for(self, message: str) -> dict[str, Any]:
        """The first log line with this message."""
        give_up_s = time.monotonic() + START_S
        while time.monotonic() < give_up_s:
            for line in self.lines():
                if line["msg"] == message:
                    return line
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"no log line '{message}': {self.log.read_text()}")

    def stop(self, limit_s: float = 10.0) -> tuple[int, float]:
        """SIGTERM; the exit code and the seconds it took."""
        began = time.monotonic()
        self.process.terminate()
        return self.process.wait(limit_s), time.monotonic() - began


class Programs:
    """Makes programs that end with `stack`."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._count = 0

    def secret(self, name: str, value: str) -> str:
        """A file that holds a secret."""
        path = self._folder / name
        path.write_text(value + "\n")
        path.chmod(0o600)
        return str(path)

    def gateway(self) -> tuple[Program, dict[str, Any]]:
        """A gateway that takes nodes with the join token as cloud; its ports by name."""
        token = self.secret("join_token", JOIN_TOKEN)
        rows = [{"join_token": {"file": token}, "tier": "cloud", "region": "here"}]
        program = self.start(
            "gateway", {"GRPC__PORT": "0", "LINK__PORT": "0", "HTTP__PORT": "0", "NODES": json.dumps(rows)}
        )
        return program, program.wait_for("gateway is up")

    def cloud(self, settings: Mapping[str, str], *, link_port: int = 1, wait: bool = True) -> Program:
        """A cloud node; `wait` until its engine is ready."""
        ours = {
            "NAME": "cloud-under-test",
            "STATE_DIR": str(self._folder / "state"),
            "LINK__GATEWAYS": f"127.0.0.1:{link_port}",
            "LINK__JOIN_TOKEN__FILE": self.secret("join_token", JOIN_TOKEN),
            "ADMIN__PORT": "0",
        }
        program = self.start("cloud", {**ours, **settings})
        if wait:
            program.wait_for("engine ready")
        return program

    def start(self, name: str, settings: Mapping[str, str]) -> Program:
        """`settings` are environment names without their prefix."""
        package = {"gateway": "gateway", "cloud": "cloud_node"}[name]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TIDEGATE_")}
        ours = {f"TIDEGATE_{name.upper()}__{key}": value for key, value in settings.items()}
        self._count += 1
        log = self._folder / f"{name}-{self._count}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", package],
                env={**kept, **ours},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._stack.callback(_end, process)
        return Program(process, log)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Gently at first, so that coverage of the child is written."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
