"""How long one decision takes, at 100, 1,000 and 10,000 nodes.

The gateway's own policy on the gateway's own latency model, which has learned from 30 answers of every node
(10 in the largest fleet), on snapshots with load. Every decision is another request: its own length, budget,
prefix and chance; quality is left out (judging a prompt is measured apart). Between decisions the fleet
changes as a heartbeat changes it. Making the snapshot of it is timed apart: many decisions share it.

Timed per decision in this process, with the garbage collector set as the gateway sets it. The sizes take
turns, so that what else the machine does hits all of them alike. How much of the tail is the machine's own
says a loop that takes its turn too and always does the same, for about as long as a decision.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import sys
import time
from dataclasses import dataclass, field, replace

from benchmarks.common import Row, percentile, row, run
from tidegate.routing.domain import (
    Analysis,
    Announcement,
    Binding,
    Budget,
    Health,
    InFlight,
    NodeLoad,
    NodeState,
    ReplayClass,
    RouteQuery,
    Snapshot,
    Speeds,
    Tier,
    Variant,
)
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.observation import Observation, Stage
from tidegate.routing.policy import Tidegate

SIZES = (100, 1_000, 10_000)
BAR_US = 100.0
# "Flat": the largest fleet takes at most this many times as long as the one of a thousand.
FLAT = 1.25
ROUND = 50
TAUGHT = 30
SMALL = Variant("tide", "d-small", "Q4_0", 8192, 13.0)
LARGE = Variant("tide", "d-large", "F16", 32768, 11.0)
GC_THRESHOLDS = (2_000, 50, 100)
SAME_WORK = 1_200


@dataclass(slots=True)
class Fleet:
    """Nine edge nodes to each cloud node. `times_us` are the decisions taken on it."""

    size: int
    rng: random.Random
    model: LearnedLatency = field(default_factory=LearnedLatency)
    nodes: list[NodeState] = field(default_factory=list)
    snapshot: Snapshot = field(default_factory=Snapshot)
    times_us: list[float] = field(default_factory=list)
    change_us: list[float] = field(default_factory=list)
    refused: int = 0

    def build(self) -> None:
        self.nodes = [self._node(number) for number in range(self.size)]
        self.snapshot = Snapshot(tuple(self.nodes))
        for node in self.nodes:
            variant = node.announcement.variants[0]
            for _ in range(TAUGHT if self.size <= 1_000 else TAUGHT // 3):
                self._teach(node, variant)

    def change(self) -> None:
        """One heartbeat, taken in as the gateway does."""
        old = self.nodes[self.rng.randrange(self.size)]
        new = replace(old, load=self._load(old.announcement.slots))
        began_ns = time.perf_counter_ns()
        self.snapshot = self.snapshot.with_changes((new,))
        self.change_us.append((time.perf_counter_ns() - began_ns) / 1000)

    def query(self) -> RouteQuery:
        rng = self.rng
        budget = rng.choice((Budget(1000.0, 150.0, 40_000.0), Budget(ttft_ms=2500.0), Budget()))
        tokens = min(4000, max(8, round(rng.lognormvariate(math.log(300), 1.0))))
        hashes = tuple(rng.randbytes(16) for _ in range(tokens * 4 // 512))
        return RouteQuery("auto", Analysis(tokens, lambda: 0.5, hashes), 256, budget, 0.9, 0.0)

    def _node(self, number: int) -> NodeState:
        cloud = number % 10 == 0
        rng, variant = self.rng, LARGE if cloud else SMALL
        speed = rng.uniform(0.5, 2.0)
        decode = ((1, 60 * speed), (8, 50 * speed), (32, 30 * speed)) if cloud else (
            (1, 20 * speed), (2, 14 * speed), (4, 9 * speed)
        )  # fmt: skip
        slots = 32 if cloud else 4
        announcement = Announcement(
            f"node-{number}", "boot", f"n{number}", (variant,), slots, 64, "bench", ReplayClass.NONE, "",
            "gpu" if cloud else "cpu", Speeds((8000.0 if cloud else 600.0) * speed, decode),
        )  # fmt: skip
        binding = Binding(Tier.CLOUD if cloud else Tier.EDGE, cost_per_mtoken=0.6 if cloud else 0.0)
        rtt_ms = 60.0 if cloud else 5.0
        sent = InFlight(rng.randrange(2), rng.randrange(200), rng.randrange(200))
        return NodeState(announcement, binding, self._load(slots), Health.READY, rtt_ms, in_flight=sent)

    def _load(self, slots: int) -> NodeLoad:
        running = self.rng.randrange(slots + 1)
        queued = self.rng.randrange(3) if running == slots else 0
        return NodeLoad(running, queued, 100 * queued, 120 * (running + queued))

    def _teach(self, node: NodeState, variant: Variant) -> None:
        p = self.model.predict(node, variant, self.query())
        noise = math.exp(self.rng.gauss(0.0, 0.2))
        prefill_ms, queue_ms = sum(p.prefill_parts) * noise, sum(p.queue_parts) * noise
        self.model.record(
            Observation(
                node_id=node.node_id,
                variant_digest=variant.digest,
                model=variant.model,
                hardware_class=node.announcement.hardware_class,
                prediction=p,
                boot_id="boot",
                stage=Stage.ENDED,
                actual_ttft_ms=p.rtt_ms + queue_ms + prefill_ms,
                actual_tpot_ms=sum(p.step_parts) * noise,
                queue_ms=queue_ms,
                prefill_ms=prefill_ms,
                prompt_tokens=p.asked_tokens,
                batch_size=p.batch_size,
                output_tokens=64,
                max_tokens=256,
            )
        )


def one_round(fleet: Fleet, policy: Tidegate) -> None:
    for _ in range(ROUND):
        fleet.change()
        snapshot, query = fleet.snapshot, fleet.query()
        began_ns = time.perf_counter_ns()
        result = policy.route(snapshot, query, fleet.model, fleet.rng.random)
        fleet.times_us.append((time.perf_counter_ns() - began_ns) / 1000)
        fleet.refused += not hasattr(result, "choices")


def worked_us(rounds: int) -> float:
    """How long it took to do the same small work so many times."""
    began_ns = time.perf_counter_ns()
    total = 0
    for number in range(rounds):
        total += number & 7
    return (time.perf_counter_ns() - began_ns) / 1000


async def measure() -> list[Row]:
    parser = argparse.ArgumentParser(description="how long one decision takes")
    parser.add_argument("--decisions", type=int, default=3_000, help="decisions per size (default 3000)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    fleets = [Fleet(size, random.Random(args.seed)) for size in SIZES]
    for fleet in fleets:
        fleet.build()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    policy = Tidegate()
    for fleet in fleets:
        one_round(fleet, policy)
        fleet.times_us.clear()
        fleet.change_us.clear()
    same_us: list[float] = []
    for _ in range(-(-args.decisions // ROUND)):
        for fleet in fleets:
            one_round(fleet, policy)
        same_us += [worked_us(SAME_WORK) for _ in range(ROUND)]
    rows = []
    for fleet in fleets:
        name = f"{fleet.size:,} nodes, {len(fleet.times_us)} decisions"
        rows.append(row(f"{name}: p50", percentile(fleet.times_us, 0.5), "us"))
        bar = BAR_US if fleet.size <= 1_000 else None
        rows.append(row(f"{name}: p99", percentile(fleet.times_us, 0.99), "us", bar=bar))
        rows.append(row(f"{name}: a change into the snapshot, p50", percentile(fleet.change_us, 0.5), "us"))
    medians = [percentile(fleet.times_us, 0.5) for fleet in fleets[1:]]
    tails = [percentile(fleet.times_us, 0.99) for fleet in fleets[1:]]
    rows.append(row("p50 at 10,000 nodes over 1,000", medians[1] / medians[0], "times", bar=FLAT))
    rows.append(row("p99 at 10,000 nodes over 1,000", tails[1] / tails[0], "times", bar=FLAT))
    same = percentile(same_us, 0.99) / percentile(same_us, 0.5)
    rows.append(row("p99 over p50 of a loop that does the same each time", same, "times"))
    return rows


if __name__ == "__main__":
    sys.exit(run("decide", measure))
