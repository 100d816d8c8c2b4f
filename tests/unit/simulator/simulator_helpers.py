"""Fleets of one or two nodes whose times can be computed by hand."""

from __future__ import annotations

from pathlib import Path

from simulator.fleet import FleetSpec, parse_fleet
from simulator.run import Served, Simulation
from simulator.trace import Recorded, draw

EXAMPLE = Path(__file__).parents[3] / "examples" / "fleet.toml"
NODE = {
    "name": "edge",
    "tier": "edge",
    "variant": "small",
    "slots": 2,
    "context_tokens": 8192,
    "prefill_tps": 1000.0,
    "prefill_chunk": 100,
    "decode_tps": [[1, 20.0], [2, 10.0]],
    "cache_tokens": 4096,
}
CLOUD = {**NODE, "name": "cloud", "tier": "cloud", "variant": "large", "slots": 8, "cost_per_mtoken": 1.0}
CLOUD["decode_tps"] = [[1, 50.0], [8, 40.0]]

TRACE = [Recorded(i * 0.4, 60 + i * 37 % 700, 1 + i * 13 % 40, (i % 5, 100 + i)) for i in range(120)]


def fleet_of(*nodes: dict[str, object], **more: object) -> FleetSpec:
    slo = {"name": "all", "share": 1.0, "ttft_ms": 3000, "tpot_ms": 150, "total_ms": 60000}
    return parse_fleet({"version": 1, "node": list(nodes), "slo": [slo], **more})


def play(fleet: FleetSpec, trace: list[Recorded], policy: str, **more: bool) -> list[Served]:
    return Simulation(fleet, draw(trace, fleet, seed=3), policy, seed=3, **more).run()
