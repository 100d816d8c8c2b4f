"""A thousand nodes on the links of one gateway process, and whether a cancel still gets through.

Simulated nodes have real links and a heartbeat a second. First the heartbeats alone are charged to the
gateway. Then come running streams and, all on one node, a 4 MiB prompt, the next one half a second after the
last, and a reader that stopped reading. Cancels are timed from right before the client acts until the node
hears of it: half of them on that hot node, half on twenty others.

Most nodes share two processes, which no real node does: with five hundred others on its event loop a node
hears late of whatever reached it in time. So the hot node has a process of its own, and so have the twenty.
Each stream gets five tokens a second: gateway, nodes and clients share this machine's cores, and where
two are used up, as with ten tokens a second, the figures are the machine's. The table says how busy it was.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

import tidegate
from benchmarks.common import CannotMeasure, Row, busy_s, cpu_s, percentile, row, run
from benchmarks.link.simnode import HOT_MODEL, MODEL, TIMED_MODEL, TOKENS_PER_S
from benchmarks.processes import Programs
from benchmarks.talker import Talker

CROWD_PROCESSES = 2
TIMED_NODES = 20
STREAM_PROCESSES = 3
READY_S = 120.0
SETTLE_S = 5.0
CANCEL_S = 20.0
POLL_S = 0.25
BAR_MS = 100.0
GOAL_CORES = 0.4
# Long enough for the flood that the stopped reader does not read.
LIMITS = """
[routing]
max_tokens_limit = 1000000
"""


class Nodes:
    """One process of nodes; resolves the futures of the cancels that reached them."""

    def __init__(self, talker: Talker, heard: dict[str, asyncio.Future[float]]) -> None:
        self.talker = talker
        self._heard = heard
        self._lags: asyncio.Queue[float] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while (said := await self.talker.hear()) is not None:
            if "worst_lag_ms" in said:
                self._lags.put_nowait(said["worst_lag_ms"])
                continue
            # The gateway appends a part of its own to the client's request id.
            waiting = self._heard.get(said["cancel"].rpartition(".")[0])
            if waiting is not None and not waiting.done():
                waiting.set_result(said["at"])

    async def worst_lag_ms(self) -> float:
        """How late its event loop was since the last time this was asked."""
        self.talker.tell({"report": True})
        async with asyncio.timeout(READY_S):
            return await self._lags.get()

    async def stop(self) -> None:
        await self.talker.stop()
        await asyncio.wait([self._reading], timeout=2.0)


class GatewayView:
    """What the gateway says of itself, asked a few times a second, and what it costs."""

    def __init__(self, pid: int, url: str) -> None:
        self._pid = pid
        self._url = url

    async def metrics(self) -> dict[str, float]:
        async with aiohttp.ClientSession() as session, session.get(f"{self._url}/metrics") as response:
            text = await response.text()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
        return {name: float(value) for name, value in lines}

    async def wait_ready(self, count: int) -> float:
        began_s = time.monotonic()
        while time.monotonic() - began_s < READY_S:
            if (await self.metrics()).get('tidegate_nodes{health="ready",tier="edge"}', 0.0) >= count:
                return time.monotonic() - began_s
            await asyncio.sleep(POLL_S)
        raise CannotMeasure(f"{count} nodes were not ready within {READY_S:.0f} s")

    def cpu(self) -> tuple[float, float]:
        return time.monotonic(), cpu_s(self._pid)

    def cores(self, since: tuple[float, float]) -> float:
        now_s, used_s = self.cpu()
        return (used_s - since[1]) / (now_s - since[0])


@dataclass(slots=True)
class Seen:
    """What one phase of cancels saw."""

    hot_ms: list[float] = field(default_factory=list)
    other_ms: list[float] = field(default_factory=list)
    stream_gaps_ms: list[float] = field(default_factory=list)
    peer_gaps_ms: list[float] = field(default_factory=list)
    tokens_per_s: float = 0.0
    big_prompts: int = 0
    cores: float = 0.0
    all_cores: float = 0.0
    lags_ms: dict[str, float] = field(default_factory=dict)


class Bench:
    def __init__(self, programs: Programs, view: GatewayView, args: argparse.Namespace) -> None:
        self._programs = programs
        self._view = view
        self._args = args
        self._rng = random.Random(args.seed)
        self._heard: dict[str, asyncio.Future[float]] = {}
        self._nodes: dict[str, list[Nodes]] = {}
        self._clients: dict[str, Talker] = {}

    async def start_nodes(self) -> float:
        """Seconds until all were ready."""
        rest = self._args.nodes - 1 - TIMED_NODES
        first = 0
        crowds = [rest // CROWD_PROCESSES + (n < rest % CROWD_PROCESSES) for n in range(CROWD_PROCESSES)]
        for model, count in ((HOT_MODEL, 1), (TIMED_MODEL, TIMED_NODES), *((MODEL, n) for n in crowds)):
            arguments = (self._programs.link_address, model, str(self._args.rate), str(first), str(count))
            talker = await Talker.start("benchmarks.link.nodes", *arguments)
            self._nodes[model] = [*self._nodes.get(model, ()), Nodes(talker, self._heard)]
            first += count
        return await self._view.wait_ready(first)

    async def start_clients(self) -> None:
        """All streams running, the reader stopped, a large prompt on its way. More clients share the streams
        than fit into one connection."""
        share = self._args.streams // STREAM_PROCESSES
        left = self._args.streams - share * STREAM_PROCESSES
        wanted = {}
        for number in range(STREAM_PROCESSES):
            wanted[f"streams-{number}"] = ("streams", share + (number < left), MODEL)
        wanted["peers"] = ("streams", 2, HOT_MODEL)
        wanted["big-prompts"] = ("big-prompts", 1, HOT_MODEL)
        wanted["stopped-reader"] = ("stopped-reader", 1, HOT_MODEL)
        for name, (kind, count, model) in wanted.items():
            address = self._programs.grpc_address
            talker = await Talker.start("benchmarks.link.clients", address, kind, str(count), model)
            self._clients[name] = talker
        for name, (_, count, _) in wanted.items():
            begun = 0
            async with asyncio.timeout(READY_S):
                while begun < count:
                    begun += (await self._report(name))["begun"]
                    await asyncio.sleep(POLL_S)

    async def cancels(self) -> Seen:
        seen = Seen()
        await self._reports(Seen())
        await self._worst_lags()
        await asyncio.sleep(SETTLE_S)
        await self._worst_lags()
        since, began_s, began_busy_s = self._view.cpu(), time.monotonic(), busy_s()
        async with tidegate.Client(self._programs.grpc_address) as client:
            for _ in range(self._args.tries):
                seen.hot_ms.append(await self._cancel_once(client, HOT_MODEL))
                seen.other_ms.append(await self._cancel_once(client, TIMED_MODEL))
        seen.cores = self._view.cores(since)
        took_s = time.monotonic() - began_s
        seen.all_cores = (busy_s() - began_busy_s) / took_s
        seen.lags_ms = await self._worst_lags()
        await self._reports(seen)
        seen.tokens_per_s /= took_s
        return seen

    async def stop(self) -> None:
        await asyncio.gather(*(client.stop() for client in self._clients.values()))
        await asyncio.gather(*(nodes.stop() for each in self._nodes.values() for nodes in each))

    async def _worst_lags(self) -> dict[str, float]:
        """How late event loops were, by the model of their nodes."""
        return {
            model: max([await nodes.worst_lag_ms() for nodes in each]) for model, each in self._nodes.items()
        }

    async def _cancel_once(self, client: tidegate.Client, model: str) -> float:
        """Milliseconds from the client's cancel to the node's."""
        stream = client.generate("the tide goes out", model=model, max_tokens=8192)
        heard = asyncio.get_running_loop().create_future()
        self._heard[stream.request_id] = heard
        await anext(stream)
        await asyncio.sleep(self._rng.uniform(0.0, 0.2))
        gone_s = time.monotonic()
        await stream.aclose()
        try:
            async with asyncio.timeout(CANCEL_S):
                return float((await heard - gone_s) * 1000)
        finally:
            del self._heard[stream.request_id]

    async def _report(self, name: str) -> dict[str, Any]:
        self._clients[name].tell({"report": True})
        said = await self._clients[name].hear()
        if said is None:
            raise CannotMeasure(f"the client process {name!r} is gone")
        return said

    async def _reports(self, seen: Seen) -> None:
        for name in self._clients:
            said = await self._report(name)
            if name.startswith("streams"):
                seen.tokens_per_s += said["tokens"]
                seen.stream_gaps_ms += said["gaps_ms"]
            elif name == "peers":
                seen.peer_gaps_ms += said["gaps_ms"]
            elif name == "big-prompts":
                seen.big_prompts += said["begun"]


async def measure() -> list[Row]:
    parser = argparse.ArgumentParser(description="a thousand nodes on one gateway process")
    parser.add_argument("--nodes", type=int, default=1000, help="simulated nodes (default 1000)")
    parser.add_argument("--streams", type=int, default=200, help="running streams (default 200)")
    parser.add_argument("--tries", type=int, default=200, help="cancels per kind of node (default 200)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the heartbeat phase in s")
    parser.add_argument("--rate", type=float, default=TOKENS_PER_S, help="tokens/s of a stream (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments (default 1)")
    args = parser.parse_args()
    raise_file_limit(args.nodes * 2 + 1000)
    async with Programs() as programs:
        gateway = await programs.start_gateway(LIMITS)
        view = GatewayView(gateway.pid, programs.http_url)
        bench = Bench(programs, view, args)
        try:
            ready_s = await bench.start_nodes()
            await asyncio.sleep(SETTLE_S)
            since = view.cpu()
            await asyncio.sleep(args.seconds)
            alone = view.cores(since)
            await bench.start_clients()
            await asyncio.sleep(SETTLE_S)
            seen = await bench.cancels()
            metrics = await view.metrics()
        except ExceptionGroup as errors:
            raise CannotMeasure(str(errors.exceptions[0])) from errors
        finally:
            await bench.stop()
    return rows_of(args, ready_s, alone, seen, metrics)


def rows_of(
    args: argparse.Namespace, ready_s: float, alone: float, seen: Seen, metrics: dict[str, float]
) -> list[Row]:
    lost = metrics.get('tidegate_link_events_total{event="lost"}', 0.0)
    suspected = metrics.get('tidegate_link_events_total{event="suspected"}', 0.0)
    hot, other = "the hot node", f"one of {TIMED_NODES} nodes"
    rows = [
        row(f"{args.nodes} nodes joined and ready after", ready_s, "s"),
        row("gateway CPU, heartbeats at 1 Hz alone", alone, "cores", bar=GOAL_CORES),
        row(f"gateway CPU with {args.streams} streams and all trouble", seen.cores, "cores"),
        row(f"all cores meanwhile, of {os.cpu_count()}", seen.all_cores, "cores"),
        row("tokens through the gateway", seen.tokens_per_s, "tokens/s"),
        row("4 MiB prompts meanwhile", seen.big_prompts, "prompts"),
        row("time between two tokens of a stream, p99", percentile(seen.stream_gaps_ms, 0.99), "ms"),
        row("the same beside the stopped reader, p99", percentile(seen.peer_gaps_ms, 0.99), "ms"),
    ]
    for model, of in ((HOT_MODEL, "the hot node"), (TIMED_MODEL, "the twenty"), (MODEL, "the crowds")):
        rows.append(row(f"event loop of {of} late, max", seen.lags_ms[model], "ms"))
    for place, samples in ((hot, seen.hot_ms), (other, seen.other_ms)):
        name = f"cancel to {place}, {len(samples)} tries"
        rows.append(row(f"{name}, p99", percentile(samples, 0.99), "ms", bar=BAR_MS))
        rows.append(row(f"{name}, p50", percentile(samples, 0.5), "ms"))
        rows.append(row(f"{name}, max", max(samples), "ms"))
    rows.append(row("times a node was suspected", suspected, "times", bar=0))
    rows.append(row("links lost", lost, "links", bar=0))
    return rows


def raise_file_limit(wanted: int) -> None:
    """For this process and those it starts. Raises CannotMeasure."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise CannotMeasure(
            f"{wanted} open files are needed, the hard limit is {hard}: raise it (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(run("link", measure))
