"""The server's process: started in a session of its own, listened to, ended within a bound."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from serving.engines.llama_cpp.process import child_environment
from serving.engines.llama_server.settings import HOST

_LAUNCH = "serving.engines.llama_server.launch"
_TAIL_BYTES = 2000


def free_port() -> int:
    """A TCP port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """One server. Whoever spawns it must call `end`."""

    def __init__(self, process: asyncio.subprocess.Process, *, echo: bool) -> None:
        self._process = process
        self._echo = echo
        self._tail = b""
        self._keeps_tail = True
        self._ended = asyncio.create_task(process.wait(), name="server-wait")
        self._listener = asyncio.create_task(self._listen(), name="server-log")

    @classmethod
    async def spawn(
        cls, command: Sequence[str], variables: Mapping[str, str], *, echo: bool
    ) -> ServerProcess:
        """Raises OSError. With `echo` the server's words go to standard error, else nowhere."""
        environment = child_environment(dict(os.environ), bounded_spin=False) | dict(variables)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _LAUNCH, str(os.getpid())),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        return cls(process, echo=echo)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit status, negative for a signal."""
        return await asyncio.shield(self._ended)

    async def ends_within(self, seconds: float) -> bool:
        return bool((await asyncio.wait({self._ended}, timeout=seconds))[0])

    async def last_words(self) -> str:
        """What an ended server said at last; only of one that never was ready."""
        await asyncio.wait({self._listener}, timeout=1.0)
        lines = self._tail.decode("utf-8", "replace").strip().splitlines()
        return " | ".join(line.strip() for line in lines[-3:])

    def forget_words(self) -> None:
        """From now on its words may quote prompts: none is kept."""
        self._keeps_tail, self._tail = False, b""

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def end(self, grace_s: float) -> int:
        """Asks it to end, kills it and its children after `grace_s`. The exit status."""
        if grace_s > 0.0 and not self._ended.done():
            self._signal(signal.SIGTERM)
            await self.ends_within(grace_s)
        self._signal(signal.SIGKILL)
        status = await self.wait()
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        return status

    def _signal(self, number: signal.Signals) -> None:
        """To its whole session: a server may have children of its own, also when it has ended itself."""
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    async def _listen(self) -> None:
        """Empties the pipe for as long as anything is written, or the server would stand still."""
        stream = self._process.stdout
        assert stream is not None
        while data := await stream.read(1 << 16):
            if self._echo:
                sys.stderr.write(data.decode("utf-8", "replace"))
            if self._keeps_tail:
                self._tail = (self._tail + data)[-_TAIL_BYTES:]
