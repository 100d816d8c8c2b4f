"""Budgets met on the reference fleet, policy by policy, on a recorded trace in the simulator.

DATA is the folder with `traces/azure_2023_conv_first_half.csv` (Azure LLM inference traces 2023, CC-BY-4.0),
SIM the one with `fleet.toml` (default: `sim` beside DATA). The latency model starts cold in every run.
Runs are kept until all are there, so that a measurement that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.common import CannotMeasure, Row, compiled, row, run
from benchmarks.pieces import SIMULATED, Piece, Pieces
from simulator.fleet import FleetSpec, load_fleet
from simulator.report import report
from simulator.run import Simulation
from simulator.tables import BadInput
from simulator.trace import Recorded, draw, read_trace
from tidegate.routing.domain import Tier

TRACE = "traces/azure_2023_conv_first_half.csv"
RATES = (2.8, 5.6)
SHARE_OF_EXACT, MORE_CLOUD = 0.98, 3.0
BELOW_MIN_TTFT, SHARE_OF_CLOUD = 1.0, 0.6
GOOD_PER_COST, NEAR_POINTS = 1.5, 2.0
COMPARED = ("load-per-slot", "min-ttft", "exact", "tidegate")
OTHERS = ("round-robin", "least-outstanding", "load-per-slot", "prefix-aware", "always-cloud", "min-ttft")
SPEED = 20_000


@dataclass(frozen=True, slots=True)
class Play:
    """One run of the trace: who decides, where, and how fast requests come."""

    name: str
    fleet: FleetSpec
    policy: str
    rate: float

    def piece(self, recorded: list[Recorded]) -> Piece:
        arrivals = draw(recorded, self.fleet, seed=1, rate=self.rate)
        began_s = perf_counter()
        served = Simulation(self.fleet, arrivals, self.policy, seed=1).run()
        speed = len(arrivals) / (perf_counter() - began_s)
        print(f"{self.name}: {speed:.0f} requests/s", flush=True)
        return {"speed": speed, **report(self.fleet, served)}


def plays(fleet: FleetSpec) -> list[Play]:
    """All runs that the rows are made of."""
    cloud = [n for n in fleet.nodes if n.tier is Tier.CLOUD]
    one = replace(fleet, nodes=tuple(n for n in fleet.nodes if n not in cloud[1:]))
    asking = replace(fleet, required_share=0.3)
    four = replace(fleet, replicas=4, heartbeat_s=1.0)
    return [
        *(Play(f"{p} at {rate}", fleet, p, rate) for rate in RATES for p in COMPARED),
        *(Play(f"{p} asked for quality", asking, p, RATES[0]) for p in ("tidegate", *OTHERS)),
        *(Play(f"{p} overloaded", one, p, RATES[1]) for p in ("tidegate", "exact")),
        Play("one replica", replace(four, replicas=1), "tidegate", RATES[0]),
        Play("four replicas", four, "tidegate", RATES[0]),
    ]


def shares(of_all: dict[str, Piece], rate: float) -> list[Row]:
    of = {p: of_all[f"{p} at {rate}"] for p in COMPARED}
    met = {p: 100 * r["slo_attainment"] for p, r in of.items()}
    cloud = {p: 100 * r["cloud_share_requests"] for p, r in of.items()}
    at = f"{rate}/s"
    rows = []
    for p, r in of.items():
        rows.append(row(f"{at} {p}: budgets met", met[p], "%"))
        rows.append(row(f"{at} {p}: cloud requests", cloud[p], "%"))
        rows.append(row(f"{at} {p}: cloud tokens", 100 * r["cloud_share_tokens"], "%"))
    ours = met["tidegate"]
    return [
        *rows,
        row(f"{at} tidegate: refused", of["tidegate"]["rejected"], "requests"),
        row(f"{at} budgets met of exact's", ours / met["exact"], "", bar=SHARE_OF_EXACT, sense=">="),
        row(f"{at} more cloud than exact", cloud["tidegate"] - cloud["exact"], "points", bar=MORE_CLOUD),
        row(f"{at} budgets met below min-ttft", met["min-ttft"] - ours, "points", bar=BELOW_MIN_TTFT),
        row(f"{at} cloud of min-ttft's", cloud["tidegate"] / cloud["min-ttft"], "", bar=SHARE_OF_CLOUD),
    ]


def quality(of: dict[str, Piece]) -> list[Row]:
    ours = of["tidegate asked for quality"]
    others = [of[f"{p} asked for quality"] for p in OTHERS]
    near = [r for r in others if r["good_attainment"] >= ours["good_attainment"] - NEAR_POINTS / 100]
    best = max((r["good_attainment"] / r["cost"] for r in near), default=0.0)
    mine = ours["good_attainment"] / ours["cost"]
    return [
        row("30 % demand quality: good attainment", 100 * ours["good_attainment"], "%"),
        row("30 % demand quality: other policies as good", len(near), "policies"),
        row(
            "30 % demand quality: good per cost against the best of them",
            mine / best if best else float("inf"),
            "times",
            bar=GOOD_PER_COST,
            sense=">=",
        ),
    ]


def overload(of: dict[str, Piece]) -> list[Row]:
    ours, exact = (of[f"{p} overloaded"]["slo_attainment"] for p in ("tidegate", "exact"))
    # exact refuses nobody: where its queues grow without end it may meet nothing at all.
    of_exact = ours / exact if exact else float("inf")
    return [
        row("overload, one cloud node: budgets met", 100 * ours, "%"),
        row("overload, one cloud node: met by exact", 100 * exact, "%"),
        row("overload, one cloud node: goodput of exact's", of_exact, "", bar=0.95, sense=">="),
    ]


def replicas(of: dict[str, Piece]) -> list[Row]:
    """The same staleness, seen by one gateway or by four."""
    one, four = (100 * of[f"{n} replica{s}"]["slo_attainment"] for n, s in (("one", ""), ("four", "s")))
    return [row("four replicas, views 1 s stale: lost against one", one - four, "points", bar=1.0)]


def played(wanted: list[Play], recorded: list[Recorded], for_s: float, more: str) -> dict[str, Piece]:
    """Ours depends on the routing code, the policies of the comparison on the simulator alone."""
    more = f"{more} {compiled()}"  # how fast it is simulated depends on it, nothing else
    ours = Pieces("trace-tidegate", for_s=for_s, more=more)
    theirs = Pieces("trace-others", for_s=for_s, more=more, folders=SIMULATED[:1])
    of: dict[str, Piece] = {}
    for kept, mine in ((ours, True), (theirs, False)):
        some = [play for play in wanted if (play.policy == "tidegate") is mine]
        of |= kept.all_of({play.name: partial(play.piece, recorded) for play in some})
    return of


async def measure(limit: int | None, for_s: float) -> list[Row]:
    data = os.environ.get("DATA")
    if not data:
        raise CannotMeasure("set DATA to the folder that holds traces/")
    sim = Path(os.environ.get("SIM") or Path(data).parent / "sim")
    try:
        fleet, recorded = load_fleet(sim / "fleet.toml"), read_trace(str(Path(data) / TRACE), limit)
    except BadInput as error:
        raise CannotMeasure(str(error)) from error
    of = played(plays(fleet), recorded, for_s, f"{fleet} {len(recorded)}")
    rows = [r for rate in RATES for r in shares(of, rate)]
    rows += [*quality(of), *overload(of), *replicas(of)]
    for policy in ("load-per-slot", "tidegate"):
        speed = of[f"{policy} at {RATES[0]}"]["speed"]
        rows.append(row(f"simulated per second, {policy}", speed, "requests/s", bar=SPEED, sense=">="))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="only the first so many requests of the trace")
    parser.add_argument("--for-s", type=float, default=1e9, help="begin no new run after so many seconds")
    args = parser.parse_args(argv)
    return run("trace", lambda: measure(args.limit, args.for_s))


if __name__ == "__main__":
    sys.exit(main())
