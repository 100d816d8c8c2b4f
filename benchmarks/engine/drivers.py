"""Both engines behind one seam: ask for an answer, get the arrival times of its tokens."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import time
from pathlib import Path
from typing import Protocol

from benchmarks.common import CannotMeasure
from benchmarks.engine.timeline import Timeline
from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import AttemptKey, Failure, InputKind, Sampling, Work
from tidegate_cli.stack.ports import free_ports

READY_S = 120.0
ALL_LAYERS = 1000
GREEDY = Sampling(temperature=0.0)


class Driver(Protocol):
    """One running engine. `cached` lets it reuse prefixes of earlier prompts; else it must not."""

    name: str

    async def answer(self, prompt: str, tokens: int, *, cached: str = "") -> Timeline: ...

    async def stop(self) -> None: ...


class OurEngine:
    """The engine as a node runs it: a child process behind LlamaCppEngine."""

    name = "tidegate"

    def __init__(self, settings: LlamaCppSettings) -> None:
        self.engine = LlamaCppEngine(settings)
        self._numbers = itertools.count(1)
        self._open: dict[AttemptKey, tuple[Timeline, asyncio.Future[None]]] = {}
        self._consumer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        try:
            await self.engine.start()
        except EngineUnavailable as error:
            raise CannotMeasure(str(error)) from error
        self._consumer = asyncio.create_task(self._consume(), name="bench-steps")

    async def _consume(self) -> None:
        async for batch in self.engine.steps():
            now_s = time.monotonic()
            for output in batch.outputs:
                if output.key not in self._open:
                    continue
                timeline, ended = self._open[output.key]
                timeline.tokens_s += [now_s] * output.count
                if output.first_token is not None:
                    timeline.prompt_tokens = output.first_token.prompt_tokens
                    timeline.cached_tokens = output.first_token.cached_tokens
                if output.finish is not None:
                    del self._open[output.key]
                    result = output.finish.result
                    if ended.done():
                        # Who asked is told to end.
                        continue
                    if isinstance(result, Failure):
                        ended.set_exception(CannotMeasure(f"our engine failed: {result.detail}"))
                    else:
                        ended.set_result(None)

    def abandon(self) -> None:
        """Ends all answers that run: they keep the tokens that have come."""
        for key, (_, ended) in self._open.items():
            self.engine.cancel(key)
            ended.set_result(None)
        self._open.clear()

    async def answer(
        self, prompt: str, tokens: int, *, cached: str = "", sampling: Sampling = GREEDY
    ) -> Timeline:
        number = next(self._numbers)
        work = Work(
            key=AttemptKey(f"bench{number}", 1),
            # Tenants share nothing: a new one finds nothing.
            tenant=cached or f"fresh{number}",
            variant_digest="",
            input_kind=InputKind.TEXT,
            input=prompt.encode(),
            sampling=sampling,
            max_tokens=tokens,
        )
        timeline = Timeline(time.monotonic())
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open[work.key] = (timeline, ended)
        self.engine.submit(work)
        await ended
        return timeline

    async def stop(self) -> None:
        await self.engine.stop(0.0)
        if self._consumer is not None:
            await self._consumer


class LlamaServer:
    """llama-server with the same slots, context, threads and batch, over its streaming HTTP API.

    `cache_mib` is what it may keep of prompts outside its slots; `flash` "" leaves it the choice.
    """

    name = "llama-server"

    def __init__(
        self, program: Path, settings: LlamaCppSettings, log: Path, *, cache_mib: int = 0, flash: str = ""
    ) -> None:
        self._program, self._settings, self._log = program, settings, log
        self._cache_mib, self._flash = cache_mib, flash
        self._port = free_ports().http
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        s = self._settings
        command = [str(self._program), "-m", str(s.model_path), "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "-np", str(s.slots), "-c", str(s.slots * s.context_tokens)]
        command += ["-t", str(s.threads), "-tb", str(s.threads), "-b", "2048", "-ub", "512"]
        command += ["--cache-ram", str(self._cache_mib), "--no-webui", "--no-warmup"]
        command += ["--flash-attn", self._flash] if self._flash else []
        # All layers is a negative number for us and a large one for llama-server.
        command += ["-ngl", str(s.n_gpu_layers % ALL_LAYERS)] if s.n_gpu_layers else []
        self._process = self._spawn(command)
        give_up_s = time.monotonic() + READY_S
        while time.monotonic() < give_up_s and self._process.poll() is None:
            try:
                status, _ = await self._request("GET", "/health", None)
                if status == 200:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.2)
        raise CannotMeasure(f"llama-server did not start: see {self._log}")

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    async def tokens_of(self, text: str) -> int:
        """How many tokens a text is without special ones."""
        _, body = await self._request("POST", "/tokenize", {"content": text})
        return len(json.loads(body)["tokens"])

    async def _request(self, method: str, path: str, body: object) -> tuple[int, bytes]:
        reader, writer = await self._send(method, path, body)
        head = await reader.readuntil(b"\r\n\r\n")
        data = await reader.read()
        writer.close()
        return int(head.split(b" ", 2)[1]), data

    async def _send(
        self, method: str, path: str, body: object
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        data = b"" if body is None else json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
        return reader, writer

    async def answer(self, prompt: str, tokens: int, *, cached: str = "") -> Timeline:
        body = {
            "prompt": prompt,
            "n_predict": tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "cache_prompt": bool(cached),
        }
        timeline = Timeline(time.monotonic())
        reader, writer = await self._send("POST", "/completion", body)
        try:
            while line := await reader.readline():
                if not line.startswith(b"data:"):
                    continue
                if b'"stop":true' not in line:
                    timeline.tokens_s.append(time.monotonic())
                    continue
                # The last event has no token of its own.
                took = json.loads(line[5:]).get("timings", {})
                timeline.cached_tokens = took.get("cache_n", 0)
                timeline.prompt_tokens = timeline.cached_tokens + took.get("prompt_n", 0)
        finally:
            writer.close()
        if not timeline.tokens_s:
            raise CannotMeasure(f"llama-server gave no token: see {self._log}")
        return timeline

    async def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, 5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
