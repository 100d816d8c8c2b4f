"""How fast an engine's sequence is free again once its client is gone.

Gateway and clients are processes of their own; the node runs in this one, behind a real link, so that its
engine can be watched. Clients cancel over gRPC, disconnect over HTTP, or are killed, at random moments while
the request waits for a slot, before its first token, and in mid-stream. The time counts from right before
the client acts until the request is out of the node's queue, or until another sequence has its slot.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from benchmarks.cancel.driver import AnswerEnded, ClientLost, ClientProcess
from benchmarks.cancel.rig import ENDLESS_TOKENS, Rig
from benchmarks.common import CannotMeasure, Row, percentile, row, run
from benchmarks.processes import Programs
from serving.engine_settings import EngineSettings, build_engine
from serving.engines.base import Engine
from serving.engines.oracle import OracleEngine, OracleSettings
from tidegate.routing.domain import Work
from tidegate_cli.models import prepared_models
from tidegate_cli.stack.process import ChildFailed

WAYS = ("gRPC cancel", "HTTP disconnect", "SIGKILL of a gRPC client", "SIGKILL of an HTTP client")
WINDOWS = ("queued", "before first token", "mid-stream")
LIMIT_MS = 100.0
ANSWER_TOKENS = 500
TEXT = "a river runs past the old mill and its wide gate to meet an open sea at high tide"
FREED_S = 30.0
SPARES = 8


@dataclass(frozen=True, slots=True)
class Bench:
    """One engine under test. Moments are drawn from [0, x) seconds, x by window as in WINDOWS.

    `step_ms` is one decode step where it is known; else the median measured meanwhile counts.
    """

    name: str
    make: Callable[[], Awaitable[Engine]]
    slots: int
    tries: int
    prompt_words: int
    moments_s: tuple[float, float, float]
    step_ms: float | None = None


async def make_oracle() -> Engine:
    """20 ms a step whatever the batch; a prefill chunk takes as long as a decode step."""
    return OracleEngine(
        OracleSettings(
            slots=4,
            queue_limit=16,
            prefill_tokens_per_s=2000.0,
            prefill_chunk_tokens=40,
            decode=((1, 50.0), (4, 50.0)),
        )
    )


async def make_llama() -> Engine:
    try:
        models = await prepared_models(print)
    except ChildFailed as error:
        raise CannotMeasure(str(error)) from error
    return build_engine(EngineSettings(kind="llama_cpp", model=str(models.edge), slots=2))


ORACLE = Bench("oracle engine", make_oracle, 4, 200, 320, (0.06, 0.25, 0.15), step_ms=20.0)
LLAMA = Bench("llama.cpp", make_llama, 2, 30, 500, (0.06, 0.5, 0.3))


@dataclass(slots=True)
class Clients:
    """Processes of one kind; killed ones are made anew a few at a time, never while a try runs."""

    kind: str
    address: str
    spares: list[ClientProcess] = field(default_factory=list)

    async def take(self) -> ClientProcess:
        if not self.spares:
            made = (ClientProcess.start(self.kind, self.address) for _ in range(SPARES))
            self.spares = list(await asyncio.gather(*made))
        return self.spares.pop()

    async def stop(self) -> None:
        await asyncio.gather(*(spare.stop() for spare in self.spares))


class Tries:
    """Runs the tries of one engine and keeps (way, window, ms)."""

    def __init__(self, bench: Bench, rig: Rig, rng: random.Random) -> None:
        self._bench = bench
        self._rig = rig
        self._rng = rng
        self.taken: list[tuple[str, str, float]] = []
        self.repeated = 0

    async def all_of(self, way: str, clients: Clients) -> None:
        kills = way.startswith("SIGKILL")
        done = 0
        while done < self._bench.tries:
            client = await clients.take()
            window = done % len(WINDOWS)
            try:
                freed_ms = await self._one(client, window, kills)
            except AnswerEnded:
                freed_ms = None
            # One that was not dropped as planned may have events left that belong to no later try.
            if kills or freed_ms is None:
                await client.stop()
            else:
                clients.spares.append(client)
            if freed_ms is None:
                self.repeated += 1
                continue
            self.taken.append((way, WINDOWS[window], freed_ms))
            done += 1

    async def _one(self, client: ClientProcess, window: int, kills: bool) -> float | None:
        """Milliseconds until free; None when the moment was missed and the try must be repeated."""
        rig, node = self._rig, self._rig.node
        await rig.settled()
        queued = WINDOWS[window] == "queued"
        # Holds the last slot for a request that is to wait; else waits for the request's own slot.
        other = rig.local(ENDLESS_TOKENS) if queued else None
        if other is not None:
            await other.started.wait()
        node.cancel_seen.clear()
        client.go(self._prompt(), ANSWER_TOKENS)
        try:
            work = await self._arrival(client)
            other = other or rig.local(ENDLESS_TOKENS)
            if WINDOWS[window] == "mid-stream":
                await client.event("first")
            await asyncio.sleep(self._rng.uniform(0.0, self._bench.moments_s[window]))
            if not queued and other.started.is_set():
                return None
            gone_s = client.kill() if kills else await client.cancel()
            async with asyncio.timeout(FREED_S):
                if queued:
                    freed_s = await self._out_of_queue()
                else:
                    await other.started.wait()
                    freed_s = other.first_token_s - other.prefill_ms / 1000
            if work.key not in node.cancelled:
                return None  # it had ended by itself
            return (freed_s - gone_s) * 1000
        finally:
            if other is not None:
                other.stop()

    async def _arrival(self, client: ClientProcess) -> Work:
        try:
            async with asyncio.timeout(FREED_S):
                return await self._rig.node.arrived.get()
        except TimeoutError:
            await client.event("cancelled")  # raises with what the client got instead
            raise

    async def _out_of_queue(self) -> float:
        node = self._rig.node
        await node.cancel_seen.wait()
        ((at_s, before, after),) = list(node.cancelled.values())[-1:]
        while after.queued >= before.queued:
            await asyncio.sleep(0.0005)
            at_s, after = time.monotonic(), node.load()
        return at_s

    def _prompt(self) -> str:
        """Words in an order that no prefix cache has seen, each about one token."""
        return " ".join(self._rng.choices(TEXT.split(), k=self._bench.prompt_words))


async def measure_engine(bench: Bench, rng: random.Random) -> list[Row]:
    async with Programs() as programs:
        # Requests shall wait at the node: there it is that a cancel has a way to go.
        await programs.start_gateway("[queue]\nrequests = 0\n")
        rig = Rig(await bench.make(), programs.link_address, busy=bench.slots - 1)
        grpc = Clients("grpc", programs.grpc_address)
        http = Clients("http", programs.http_url)
        tries = Tries(bench, rig, rng)
        try:
            await rig.start()
            await programs.wait_nodes(1)
            for way in WAYS:
                began_s = time.monotonic()
                await tries.all_of(way, grpc if "gRPC" in way else http)
                print(f"{bench.name}: {way}: {bench.tries} tries in {time.monotonic() - began_s:.0f} s")
        except ClientLost as error:
            raise CannotMeasure(f"a client got an error instead of an answer: {error}") from error
        finally:
            await asyncio.gather(grpc.stop(), http.stop())
            await rig.stop()
        return rows_of(bench, tries, rig.step_ms())


def rows_of(bench: Bench, tries: Tries, step_ms: float) -> list[Row]:
    rows = [row(f"{bench.name}: one decode step as measured, p50", step_ms, "ms")]
    limit_ms = LIMIT_MS + (bench.step_ms or step_ms)
    for way in WAYS:
        of_way = [ms for each, _, ms in tries.taken if each == way]
        name = f"{bench.name}: {way} to slot free, {len(of_way)} tries"
        rows.append(row(f"{name}, p99", percentile(of_way, 0.99), "ms", bar=limit_ms))
        rows.append(row(f"{name}, p50", percentile(of_way, 0.5), "ms"))
        rows.append(row(f"{name}, max", max(of_way), "ms"))
    for window in WINDOWS:
        of_window = [ms for _, each, ms in tries.taken if each == window]
        rows.append(row(f"{bench.name}: {window}, all ways, p99", percentile(of_window, 0.99), "ms"))
    rows.append(row(f"{bench.name}: tries repeated", tries.repeated, "tries"))
    return rows


async def measure() -> list[Row]:
    parser = argparse.ArgumentParser(description="how fast a sequence is free once its client is gone")
    parser.add_argument("--tries", type=int, help="tries per way with the oracle engine (default 200)")
    parser.add_argument("--engine", choices=("oracle", "llama.cpp"), help="only this one (default both)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments (default 1)")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    benches = {"oracle": replace(ORACLE, tries=args.tries or ORACLE.tries), "llama.cpp": LLAMA}
    rows: list[Row] = []
    for name in [args.engine] if args.engine else benches:
        rows += await measure_engine(benches[name], rng)
    return rows


if __name__ == "__main__":
    sys.exit(run("cancel", measure))
