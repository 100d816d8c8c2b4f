"""A fleet as a file says it: nodes, SLO classes, quality, gateways. See docs/simulator.md."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidegate.routing.domain import Tier


class BadInput(Exception):
    """A file that cannot be used; the message is one line."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` is kill, slow or silent."""

    at_s: float
    for_s: float
    kind: str
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node. `decode` is ((batch, tokens/s per stream), ...), ascending."""

    name: str
    tier: Tier
    variant: str
    slots: int
    context_tokens: int
    prefill_tps: float
    prefill_chunk: int
    decode: tuple[tuple[int, float], ...]
    cache_tokens: int
    region: str = ""
    rtt_ms: tuple[float, float] = (0.0, 0.0)
    speed_noise: float = 0.0
    cost_per_mtoken: float = 0.0
    queue_limit: int = 1 << 20
    failures: tuple[Fault, ...] = ()

    def step_s(self, batch: int) -> float:
        """Seconds of one decode step; the time per step is linear between the points of the curve."""
        low_n, low_s = self.decode[0][0], 1.0 / self.decode[0][1]
        slope = 0.0
        for n, tps in self.decode[1:]:
            slope = (1.0 / tps - low_s) / (n - low_n)
            if batch <= n:
                break
            low_n, low_s = n, 1.0 / tps
        return low_s + slope * (batch - low_n) if batch > self.decode[0][0] else 1.0 / self.decode[0][1]


@dataclass(frozen=True, slots=True)
class Slo:
    name: str
    share: float
    ttft_ms: float | None
    tpot_ms: float | None
    total_ms: float | None


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """`required_share` of the requests demand P(good) >= 0.8 of what a variant of `ability` can."""

    nodes: tuple[NodeSpec, ...]
    slos: tuple[Slo, ...]
    ability: Mapping[str, float] = field(default_factory=dict)
    seen_noise: float = 0.15
    required_share: float = 0.0
    replicas: int = 1
    heartbeat_s: float = 1.0


def load_fleet(path: Path) -> FleetSpec:
    """Raises BadInput."""
    try:
        return parse_fleet(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {error}") from error


def parse_fleet(data: Mapping[str, Any]) -> FleetSpec:
    """Raises BadInput for what the schema does not allow."""
    try:
        if data.get("version") != 1:
            raise BadInput("a fleet file says version = 1")
        nodes = tuple(spec for entry in data["node"] for spec in _nodes(entry))
        quality, gateways = data.get("quality", {}), data.get("gateways", {})
        fleet = FleetSpec(
            nodes=nodes,
            slos=tuple(_slo(entry) for entry in data.get("slo", [{"name": "all", "share": 1.0}])),
            ability={str(k): float(v) for k, v in quality.get("ability", {}).items()},
            seen_noise=float(quality.get("seen_noise", 0.15)),
            required_share=float(quality.get("required_share", 0.0)),
            replicas=int(gateways.get("replicas", 1)),
            heartbeat_s=float(gateways.get("heartbeat_s", 1.0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"not a fleet: {error!r}") from error
    if not nodes or fleet.replicas < 1 or sum(s.share for s in fleet.slos) <= 0.0:
        raise BadInput("a fleet needs a node, a gateway and an SLO class with a share")
    return fleet


def _nodes(entry: Mapping[str, Any]) -> list[NodeSpec]:
    count = int(entry.get("count", 1))
    mean, deviation = entry.get("rtt_ms", [0.0, 0.0])
    decode = tuple(sorted((int(n), float(tps)) for n, tps in entry["decode_tps"]))
    faults = tuple(
        Fault(float(f["at_s"]), float(f["for_s"]), str(f["kind"]), float(f.get("factor", 1.0)))
        for f in entry.get("failures", [])
    )
    if not decode or any(f.kind not in ("kill", "slow", "silent") for f in faults):
        raise BadInput(f"node {entry['name']}: decode_tps is empty or a failure's kind is unknown")
    slots, prefill_tps, chunk = int(entry["slots"]), float(entry["prefill_tps"]), int(entry["prefill_chunk"])
    if slots < 1 or prefill_tps <= 0.0 or chunk < 1 or any(n < 1 or tps <= 0.0 for n, tps in decode):
        raise BadInput(f"node {entry['name']}: slots, speeds and chunks must be positive")
    return [
        NodeSpec(
            name=f"{entry['name']}-{i}" if count > 1 else str(entry["name"]),
            tier=Tier(entry["tier"]),
            variant=str(entry["variant"]),
            slots=slots,
            context_tokens=int(entry["context_tokens"]),
            prefill_tps=prefill_tps,
            prefill_chunk=chunk,
            decode=decode,
            cache_tokens=int(entry.get("cache_tokens", 0)),
            region=str(entry.get("region", "")),
            rtt_ms=(float(mean), float(deviation)),
            speed_noise=float(entry.get("speed_noise", 0.0)),
            cost_per_mtoken=float(entry.get("cost_per_mtoken", 0.0)),
            queue_limit=int(entry.get("queue_limit", 1 << 20)),
            failures=faults,
        )
        for i in range(count)
    ]


def _slo(entry: Mapping[str, Any]) -> Slo:
    limits = (None if entry.get(k) is None else float(entry[k]) for k in ("ttft_ms", "tpot_ms", "total_ms"))
    return Slo(str(entry["name"]), float(entry["share"]), *limits)
