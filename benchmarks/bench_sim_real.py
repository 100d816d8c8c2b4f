"""Does the simulator agree with reality? The same requests on real programs and in the simulator.

Four edge daemons with paced engines of unlike speed, a gateway with the policy, all as processes on this
machine over real links. Arrivals are Poisson; lengths are drawn; prompts share no prefix. An answer is as
long as its request allows, so that both know the same. The simulated gateway has the same policy. The chances
of a gateway make as much of 500 requests as what is compared here, so each side is played several times, the
real one too, and medians are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import median

import tidegate
from benchmarks.common import Row, percentile, row, run
from benchmarks.processes import Programs
from simulator.fleet import FleetSpec, parse_fleet
from simulator.policies import keeps
from simulator.run import Simulation
from simulator.trace import Arrival, Recorded, draw
from tidegate.routing.prefix import canonical_bytes
from tidegate_cli.stack.ports import free_ports

POLICIES = ("round-robin", "least-outstanding", "tidegate")
REQUESTS, RATE = 500, 8.0
SPEEDS = {"fast": (4000.0, [[1, 50.0], [4, 30.0]]), "slow": (2500.0, [[1, 35.0], [4, 24.0]])}
# Requests, one after the other, that show what client, gateway and link add on this machine.
ALONE = 40
BUDGET = tidegate.Budget(ttft_ms=600, tpot_ms=60, total_ms=4000)
WITHIN, POINTS = 10.0, 2.0
# Real runs per policy, and simulations of each of them: its nodes have an order of their own.
RUNS, SIMULATIONS = 3, 9


@dataclass(frozen=True, slots=True)
class Outcome:
    ttft_ms: float
    met: bool


Runs = list[list[Outcome]]


def fleet(rtt_ms: float) -> FleetSpec:
    nodes = [
        {
            "name": kind,
            "count": 2,
            "tier": "edge",
            "variant": "oracle",
            "slots": 4,
            "queue_limit": 64,
            "context_tokens": 8192,
            "prefill_tps": prefill,
            "prefill_chunk": 512,
            "decode_tps": decode,
            "cache_tokens": 0,
            "rtt_ms": [rtt_ms, 0.0],
        }
        for kind, (prefill, decode) in SPEEDS.items()
    ]
    limits = {"ttft_ms": BUDGET.ttft_ms, "tpot_ms": BUDGET.tpot_ms, "total_ms": BUDGET.total_ms}
    return parse_fleet({"version": 1, "node": nodes, "slo": [{"name": "all", "share": 1.0, **limits}]})


def requests(count: int, spec: FleetSpec) -> list[Arrival]:
    rng = random.Random(11)
    at_s, recorded = 0.0, []
    for _ in range(count):
        at_s += rng.expovariate(RATE)
        recorded.append(Recorded(at_s, int(rng.uniform(50, 800)), rng.randint(4, 44)))
    return [replace(a, max_tokens=a.output_tokens) for a in draw(recorded, spec, seed=11)]


def simulated(spec: FleetSpec, arrivals: list[Arrival], policy: str) -> Runs:
    """One after the other with other chances of the gateway: the real one's are its own."""
    return [
        [
            Outcome(s.ttft_s * 1000, s.node is not None and keeps(s.arrival, s.ttft_s, s.total_s))
            for s in Simulation(spec, arrivals, policy, seed=seed, gateway_policy=True).run()
        ]
        for seed in range(SIMULATIONS)
    ]


async def real(spec: FleetSpec, arrivals: list[Arrival], policy: str) -> tuple[list[Outcome], dict[str, str]]:
    """What became of the requests, and the node ids by name."""
    async with _running(spec, policy) as client:
        ids = {node.name: node.node_id for node in await client.nodes(deadline_s=10.0)}
        began_s = time.monotonic() + 0.5
        return await asyncio.gather(*(_ask(client, a, began_s) for a in arrivals)), ids


def in_turn(spec: FleetSpec, ids: dict[str, str]) -> FleetSpec:
    """The fleet with names in the order of the real node ids, which are hashes of keys made at the start.

    A turn around four nodes gives each a quarter of the requests, and which quarter its order decides: the
    same requests in the six orders of two fast and two slow nodes have a p95 of 800 to 1,123 ms.
    """
    order = sorted(spec.nodes, key=lambda node: ids[node.name])
    return replace(spec, nodes=tuple(replace(n, name=f"{i}-{n.name}") for i, n in enumerate(order)))


async def added_ms(spec: FleetSpec) -> float:
    """TTFT minus the node's own stamps, median of requests that are alone: no node's time is in it."""
    async with _running(spec, "round-robin") as client:
        return percentile([await _added(client, number) for number in range(ALONE)], 0.5)


async def _added(client: tidegate.Client, number: int) -> float:
    await asyncio.sleep(0.05)
    answer = await client.complete(f"{number:08x}" * 50, max_tokens=2)
    assert answer.ttft_ms is not None
    return answer.ttft_ms - answer.timings.queue_ms - answer.timings.prefill_ms


@asynccontextmanager
async def _running(spec: FleetSpec, policy: str) -> AsyncIterator[tidegate.Client]:
    async with Programs() as programs:
        await programs.start_gateway(f'[routing]\npolicy = "{policy}"\n')
        for node in spec.nodes:
            programs.ports = replace(programs.ports, edge_a=free_ports().edge_a)
            engine = f"""
[engine]
kind = "oracle"
model_name = "oracle"
slots = {node.slots}
queue_limit = {node.queue_limit}
context_tokens = {node.context_tokens}
[engine.oracle]
prefill_tokens_per_s = {node.prefill_tps}
decode = {json.dumps(node.decode)}
cache_tokens = 0
"""
            await programs.start_edge(node.name, engine)
        await programs.wait_nodes(len(spec.nodes))
        async with tidegate.Client(programs.grpc_address) as client:
            yield client


async def _ask(client: tidegate.Client, arrival: Arrival, began_s: float) -> Outcome:
    frame = len(canonical_bytes((tidegate.Message(tidegate.Role.USER, ""),)))
    prompt = f"{arrival.number:08x}".ljust(max(8, arrival.prompt_tokens * 4 - frame), "x")
    await asyncio.sleep(max(0.0, began_s + arrival.at_s - time.monotonic()))
    started_s, first_s = time.monotonic(), None
    try:
        async with client.generate(prompt, budget=BUDGET, max_tokens=arrival.max_tokens) as stream:
            async for chunk in stream:
                if first_s is None and chunk.count:
                    first_s = time.monotonic() - started_s
    except tidegate.TidegateError:
        first_s = None
    total_s = time.monotonic() - started_s
    if first_s is None:
        return Outcome(float("inf"), False)
    return Outcome(first_s * 1000, keeps(arrival, first_s, total_s))


def compared(policy: str, ours: Runs, theirs: Runs) -> list[Row]:
    """Medians of the simulations against those of the real runs."""
    rows = []
    for q in (50, 95):
        sims, true = (
            [percentile([o.ttft_ms for o in run], q / 100) for run in side] for side in (ours, theirs)
        )
        rows.append(row(f"{policy}: TTFT p{q}, real ({spread(true)} ms)", median(true), "ms"))
        off = 100 * abs(median(sims) / median(true) - 1.0)
        told = f"simulated {median(sims):.0f} ms ({spread(sims)})"
        rows.append(row(f"{policy}: TTFT p{q}, {told}, is off by", off, "%", bar=WITHIN))
    sims, true = ([100 * sum(o.met for o in run) / len(run) for run in side] for side in (ours, theirs))
    rows.append(row(f"{policy}: budgets met, real ({spread(true)} %)", median(true), "%"))
    off = abs(median(sims) - median(true))
    told = f"simulated {median(sims):.1f} % ({spread(sims)})"
    rows.append(row(f"{policy}: budgets met, {told}, is off by", off, "points", bar=POINTS))
    return rows


def spread(values: list[float]) -> str:
    return f"{min(values):.4g} to {max(values):.4g}"


async def measure(count: int, runs: int, policies: tuple[str, ...]) -> list[Row]:
    rtt_ms = await added_ms(fleet(0.0))
    spec = fleet(rtt_ms)
    arrivals = requests(count, spec)
    rows = [
        row("requests per policy", count, "requests", bar=REQUESTS, sense=">="),
        row("added by client, gateway and link: the simulated round trip", rtt_ms, "ms"),
    ]
    for policy in policies:
        played: Runs = []
        sims: Runs = []
        for number in range(runs):
            outcomes, ids = await real(spec, arrivals, policy)
            played.append(outcomes)
            sims += simulated(in_turn(spec, ids), arrivals, policy)
            print(f"{policy}: played {number + 1} of {runs}", flush=True)
        rows += compared(policy, sims, played)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--policies", nargs="*", default=POLICIES, choices=POLICIES)
    args = parser.parse_args()
    return run("sim-real", lambda: measure(args.requests, args.runs, tuple(args.policies)))


if __name__ == "__main__":
    sys.exit(main())
