"""The child process as its parent handles it: started, spoken with, ended, reaped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict

from serving.engines.llama_cpp import protocol
from serving.engines.llama_cpp.protocol import ChildConfig, Frame
from serving.engines.llama_cpp.scratch import Scratch

_LOG = logging.getLogger(__name__)

_MODULE = "serving.engines.llama_cpp.child"
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_KEPT_PREFIXES = (
    "PYTHON",
    "COVERAGE",
    "COV_",
    "OMP_",
    "GOMP_",
    "GGML_",
    "LLAMA_",
    "CUDA_",
    "NVIDIA_",
    "HIP_",
)


def child_environment(environ: dict[str, str], *, bounded_spin: bool) -> dict[str, str]:
    """What the child needs of the environment; keys and tokens of the daemon are not among it."""
    kept = {k: v for k, v in environ.items() if k in _KEPT_VARIABLES or k.startswith(_KEPT_PREFIXES)}
    # The backtrace of an abort is made by a debugger that could print prompts.
    kept["GGML_NO_BACKTRACE"] = "1"
    # numpy starts threads when it is imported, and what is sealed of the memory is so for later ones only.
    kept["OPENBLAS_NUM_THREADS"] = "1"
    if bounded_spin:
        kept.setdefault("GOMP_SPINCOUNT", "1000")
    return kept


class ChildProcess:
    """One child. Whoever spawns it must call `end`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        scratch: Scratch | None = None,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._scratch = scratch

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def spawn(cls, config: ChildConfig, *, bounded_spin: bool) -> ChildProcess:
        """Starts the child and sends it its configuration. Raises OSError."""
        environment = child_environment(dict(os.environ), bounded_spin=bounded_spin)
        scratch = await asyncio.to_thread(_scratch)
        if scratch is not None:
            environment["TMPDIR"] = str(scratch.path)
        try:
            process, ours = _start(environment)
        except OSError:
            _remove(scratch)
            raise
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            # Cancelled: nobody else knows of this process.
            ours.close()
            process.kill()
            process.wait()
            _remove(scratch)
            raise
        child = cls(process, reader, writer, scratch)
        child.send({"t": "config", "config": asdict(config)})
        return child

    def send(self, frame: Frame) -> None:
        """Never blocks; to a child that is gone it does nothing. Raises ProtocolError on a huge frame."""
        if not self._writer.is_closing():
            self._writer.write(protocol.encode(frame))

    async def receive(self) -> Frame | None:
        """The next frame; None when the child is gone. Raises ProtocolError."""
        try:
            header = await self._reader.readexactly(protocol.HEADER.size)
            return protocol.decode(await self._reader.readexactly(protocol.body_length(header)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    async def end(self, grace_s: float) -> int:
        """Closes the socket, which ends the child; kills it after `grace_s`. The exit status.

        Cancelled, it waits for the end all the same: nobody else would reap the child.
        """
        ending = asyncio.ensure_future(self._end(grace_s))
        try:
            return await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending
            raise

    async def _end(self, grace_s: float) -> int:
        self._writer.close()
        try:
            return await asyncio.to_thread(self._process.wait, grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return await asyncio.to_thread(self._process.wait)
        finally:
            _remove(self._scratch)
            try:
                await self._writer.wait_closed()
            except OSError:
                pass


def _scratch() -> Scratch | None:
    """None where none can be made, as on a full disk: the engine itself writes no files."""
    try:
        return Scratch.make()
    except OSError as error:
        _LOG.warning("the engine child gets no temporary directory of its own: %s", error.strerror)
        return None


def _remove(scratch: Scratch | None) -> None:
    if scratch is not None:
        scratch.remove()


def _start(environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process, and our end of the socket to it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", _MODULE, str(theirs.fileno()), str(os.getpid())]
    try:
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return process, ours
