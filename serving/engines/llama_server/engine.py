"""LlamaServerEngine: the Engine seam in front of a server that this node starts and keeps alive."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from serving.engines.base import EngineInfo, EngineLoad, EngineRefused, EngineUnavailable
from serving.engines.llama_server.model import Described, describe_file
from serving.engines.llama_server.process import ServerProcess
from serving.engines.llama_server.settings import LlamaServerSettings
from serving.engines.openai_http import OpenAiHttpEngine
from serving.engines.openai_http.outbox import Outbox
from tidegate.routing.domain import (
    AttemptKey,
    CacheDelta,
    Cause,
    Failure,
    Finish,
    SequenceOutput,
    StepBatch,
    Unit,
    Variant,
    Work,
)

_LOG = logging.getLogger(__name__)
_FIRST_BACKOFF_S = 0.5
_END_GRACE_S = 0.5
# A broken connection is seen before the end of the process that broke it.
_SETTLE_S = 0.5
_RESTARTING = Failure(Cause.ENGINE_CRASHED, "the server is being started again")
_DRAINING = Failure(Cause.DRAINING, "the engine is stopping")


@dataclass(frozen=True, slots=True)
class _Server:
    """A server that is ready, the engine that speaks with it, and the task that reads that engine."""

    process: ServerProcess
    inner: OpenAiHttpEngine
    pump: asyncio.Task[None]


class LlamaServerEngine:
    """Implements serving.engines.base.Engine; `clock` gives seconds.

    Each server listens on a socket in a directory of its own, so nobody else on this machine can use it, and
    no other program gets a prompt that it was not meant to have. Indices count deltas.
    """

    def __init__(self, settings: LlamaServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._file = Described(Variant(settings.model, ""), 0, 0)
        self._speeds = settings.speeds
        self._server: _Server | None = None
        self._open: dict[AttemptKey, int] = {}
        self._outbox = Outbox()
        self._tasks: set[asyncio.Task[None]] = set()
        self._crashes_in_a_row = 0
        self._hung = False
        self._is_new = False
        self._stopping = False

    @property
    def child_pid(self) -> int | None:
        """Process id of the running server."""
        return self._server.process.pid if self._server is not None else None

    async def start(self) -> EngineInfo:
        """Checks the file, starts the server and asks it something. Raises EngineUnavailable."""
        self._file = await asyncio.to_thread(describe_file, self._settings)
        server, info = await self._launch()
        self._spawn(self._supervise(server), "server-supervise")
        self._spawn(self._watch(), "server-watch")
        digest = self._settings.replay_digest(self._file.variant.digest, info.build)
        return dataclasses.replace(info, replay_digest=digest)

    def submit(self, work: Work) -> None:
        if self._stopping:
            raise EngineRefused(_DRAINING)
        if self._server is None:
            raise EngineRefused(_RESTARTING)
        self._server.inner.submit(work)
        self._open[work.key] = work.start_index

    def cancel(self, key: AttemptKey) -> None:
        self._outbox.drop(key)
        if self._open.pop(key, None) is not None and self._server is not None:
            self._server.inner.cancel(key)

    def load(self) -> EngineLoad:
        if self._server is None:
            return EngineLoad(False, 0, 0, 0, 0, 0, 0.0, self._speeds)
        load = self._server.inner.load()
        return dataclasses.replace(load, ready=load.ready and not self._stopping)

    async def steps(self) -> AsyncIterator[StepBatch]:
        while (batch := await self._outbox.take()) is not None:
            yield batch

    def cache_changes(self) -> CacheDelta | None:
        """A guess: the server does not say which prefixes it holds."""
        if self._is_new:
            self._is_new = False
            return self.cache_full()
        return None if self._server is None else self._server.inner.cache_changes()

    def cache_full(self) -> CacheDelta:
        return CacheDelta(full=True) if self._server is None else self._server.inner.cache_full()

    async def stop(self, grace_s: float) -> None:
        self._stopping = True
        server = self._server
        if server is not None:
            await server.inner.stop(grace_s)
            await asyncio.wait({server.pump})
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if server is not None:
            await server.process.end(_END_GRACE_S)
            self._server = None
        self._fail_all(_DRAINING)
        self._outbox.close()

    # The server's life

    async def _launch(self) -> tuple[_Server, EngineInfo]:
        """A server that has answered. Raises EngineUnavailable."""
        process = await self._spawned()
        spoken_with = self._settings.of_client(self._file.variant, self._speeds, process.socket)
        inner = OpenAiHttpEngine(spoken_with, self._clock)
        began_s = self._clock()
        try:
            info = await self._first_answer(process, inner)
        except BaseException:
            await process.end(0.0)
            raise
        process.forget_words()
        self._hung = False
        pump = asyncio.create_task(self._pump(inner), name="server-steps")
        self._is_new = True
        self._server = _Server(process, inner, pump)
        _LOG.info("server %d is ready after %.1f s", process.pid, self._clock() - began_s)
        if exposed := process.exposed():
            _LOG.warning("the server can reach the network and start programs: %s", exposed)
        return self._server, info

    async def _spawned(self) -> ServerProcess:
        settings, kept_mib = self._settings, self._file.kept_mib
        try:
            return await ServerProcess.spawn(
                lambda socket: settings.command_line(socket, kept_mib),
                memory_limit_bytes=self._file.memory_limit_bytes,
                helpers=settings.helpers,
                echo=settings.debug,
            )
        except OSError as error:
            raise EngineUnavailable(f"the server's process cannot be started: {error}") from error

    async def _first_answer(self, process: ServerProcess, inner: OpenAiHttpEngine) -> EngineInfo:
        """What the server says of itself, unless it ends before. Raises EngineUnavailable."""
        starting = asyncio.ensure_future(inner.start())
        ended = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait({starting, ended}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                return starting.result()
            said = await process.last_words()
            name = self._settings.command_line(process.socket)[0]
            raise EngineUnavailable(
                f"`{name}` ended with status {ended.result()} while it loaded "
                f"{self._settings.model_path.name}: {said}"
            )
        except asyncio.CancelledError:
            if starting.done() and not starting.cancelled() and starting.exception() is None:
                await inner.stop(0.0)
            raise
        finally:
            for task in (starting, ended):
                task.cancel()
            await asyncio.gather(starting, ended, return_exceptions=True)

    async def _supervise(self, server: _Server) -> None:
        """Owns the server: waits for its end, fails what it ran, and starts the next one."""
        while True:
            status = await server.process.wait()
            # Also what the ended server may have left behind.
            await server.process.end(0.0)
            self._server = None
            server.pump.cancel()
            await asyncio.gather(server.pump, return_exceptions=True)
            failure = self._why(status)
            _LOG.error("server %d ended: %s", server.process.pid, failure.detail)
            self._fail_all(failure)
            self._speeds = server.inner.load().speeds
            await server.inner.stop(0.0)
            server = await self._relaunch()

    def _why(self, status: int) -> Failure:
        if self._hung:
            limit = self._settings.hang_timeout_s
            return Failure(Cause.ENGINE_HUNG, f"the server gave nothing for {limit:g} s and was ended")
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return Failure(Cause.ENGINE_CRASHED, f"the server ended {how}")

    async def _relaunch(self) -> _Server:
        """Tries until a server is ready. The first try after an answer is made at once."""
        while True:
            self._crashes_in_a_row += 1
            if self._crashes_in_a_row > 1:
                pause = _FIRST_BACKOFF_S * 2.0 ** min(self._crashes_in_a_row - 2, 10)
                await asyncio.sleep(min(pause, self._settings.restart_backoff_max_s))
            try:
                return (await self._launch())[0]
            except EngineUnavailable as error:
                _LOG.error("the server cannot be started again: %s", error)

    async def _watch(self) -> None:
        """Ends a server that runs work and gives nothing, or whose health is bad for too long."""
        limit_s, strikes, well_s = self._settings.hang_timeout_s, 0, self._clock()
        while True:
            await asyncio.sleep(limit_s / 8)
            server = self._server
            load = self.load()
            if server is None or load.ready:
                well_s = self._clock()
            stuck = load.progress_age_ms > limit_s * 1e3 or self._clock() - well_s > limit_s
            # Twice: after a pause of this very process, answers may lie unread.
            strikes = strikes + 1 if stuck and not self._stopping else 0
            if server is not None and strikes >= 2 and not self._hung:
                self._hung = True
                server.process.kill()

    # Outputs

    async def _pump(self, inner: OpenAiHttpEngine) -> None:
        async for batch in inner.steps():
            for output in batch.outputs:
                self._take(output)

    def _take(self, output: SequenceOutput) -> None:
        if output.key not in self._open:
            return
        result = output.finish.result if output.finish is not None else None
        if isinstance(result, Failure) and result.cause is Cause.UPSTREAM:
            self._spawn(self._settle(output), "server-settle")
            return
        self._pass_on(output)

    async def _settle(self, output: SequenceOutput) -> None:
        """A failure of the server's is a crash if its process ends now; then all its sequences end as one."""
        server = self._server
        if server is None or await server.process.ends_within(_SETTLE_S):
            return
        self._pass_on(output)

    def _pass_on(self, output: SequenceOutput) -> None:
        if output.key not in self._open:
            return
        self._outbox.put(output)
        if output.finish is not None:
            del self._open[output.key]
        else:
            self._crashes_in_a_row = 0
            self._open[output.key] = output.first_index + output.count

    def _fail_all(self, failure: Failure) -> None:
        for key, next_index in self._open.items():
            self._outbox.put(SequenceOutput(key, next_index, unit=Unit.DELTA, finish=Finish(failure)))
        self._open.clear()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        # Nobody would start the server again: ends the steps, so that the node's owner notices.
        _LOG.error("%s ended for good", task.get_name(), exc_info=task.exception())
        self._fail_all(Failure(Cause.INTERNAL, "the engine's supervision ended"))
        self._outbox.close()
