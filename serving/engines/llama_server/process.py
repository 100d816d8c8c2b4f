"""The server's process: sealed, in a session and a directory of its own, ended within a bound."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.engines.llama_cpp.process import child_environment
from serving.engines.llama_cpp.scratch import Scratch
from serving.engines.llama_server.seal import Seal

_LAUNCH = "serving.engines.llama_server.launch"
# llama-server takes an address for a path by this ending.
_SOCKET = "server.sock"
# The kernel's limit is 108 bytes, the last one 0; other systems have less.
_LONGEST_SOCKET = 103
_TAIL_BYTES = 2000
_EXPOSED_BYTES = 500


class ServerProcess:
    """One server. Whoever spawns it must call `end`."""

    def __init__(
        self, process: asyncio.subprocess.Process, scratch: Scratch, exposed_fd: int, *, echo: bool
    ) -> None:
        self._process = process
        self._scratch = scratch
        self._exposed_fd = exposed_fd
        self._echo = echo
        self._tail = b""
        self._keeps_tail = True
        self._ended = asyncio.create_task(process.wait(), name="server-wait")
        self._listener = asyncio.create_task(self._listen(), name="server-log")

    @classmethod
    async def spawn(
        cls,
        command_line: Callable[[Path], Sequence[str]],
        *,
        memory_limit_bytes: int,
        helpers: bool,
        echo: bool,
    ) -> ServerProcess:
        """`command_line` is given the socket to listen on. Raises OSError.

        With `echo` the server's words go to standard error, else nowhere.
        """
        scratch = await asyncio.to_thread(Scratch.make)
        try:
            exposed, theirs = os.pipe()
        except OSError:
            scratch.remove()
            raise
        try:
            _require_short(scratch.path / _SOCKET)
            seal = Seal(os.getpid(), theirs, memory_limit_bytes, helpers)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", _LAUNCH, seal.argument()),
                *command_line(scratch.path / _SOCKET),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=_environment() | {"TMPDIR": str(scratch.path)},
                pass_fds=(theirs,),
                start_new_session=True,
            )
        except BaseException:
            os.close(exposed)
            scratch.remove()
            raise
        finally:
            os.close(theirs)
        return cls(process, scratch, exposed, echo=echo)

    @property
    def socket(self) -> Path:
        """Where it listens. Nobody but this user can reach it."""
        return self._scratch.path / _SOCKET

    def exposed(self) -> str:
        """Why it is not sealed, or empty. Once, of a server that is ready."""
        return os.read(self._exposed_fd, _EXPOSED_BYTES).decode()

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
        try:
            if grace_s > 0.0 and not self._ended.done():
                self._signal(signal.SIGTERM)
                await self.ends_within(grace_s)
        finally:
            self._signal(signal.SIGKILL)
            self._clean_up()
        status = await self.wait()
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        return status

    def _clean_up(self) -> None:
        """May be repeated."""
        self._scratch.remove()
        if self._exposed_fd >= 0:
            os.close(self._exposed_fd)
            self._exposed_fd = -1

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


def _require_short(socket: Path) -> None:
    """Raises OSError for a path that is no address."""
    if len(os.fsencode(socket)) > _LONGEST_SOCKET:
        raise OSError(errno.ENAMETOOLONG, "no socket can have so long a path, set TMPDIR", str(socket))


def _environment() -> dict[str, str]:
    """Without the key that llama-server would ask for: the socket's directory is what keeps others away."""
    kept = child_environment(dict(os.environ), bounded_spin=False)
    return {name: value for name, value in kept.items() if name != "LLAMA_API_KEY"}
