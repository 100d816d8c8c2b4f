"""A fleet as a file says it: nodes, SLO classes, quality, gateways. See docs/simulator.md."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simulator.tables import BadInput, Table
from tidegate.routing.domain import Tier

FAULTS = ("kill", "slow", "silent")


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` is one of FAULTS."""

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
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path}: not TOML: {error}") from error
    try:
        return parse_fleet(data)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def parse_fleet(data: Mapping[str, Any]) -> FleetSpec:
    """Raises BadInput for what the schema does not allow."""
    top = Table("fleet", data)
    if top.whole("version", 0) != 1:
        raise BadInput("a fleet file says version = 1")
    nodes = tuple(spec for entry in top.items("node") for spec in _nodes(entry))
    slos = tuple(_slo(entry) for entry in top.items("slo", ({"name": "all", "share": 1.0},)))
    quality, gateways = top.table("quality"), top.table("gateways")
    fleet = FleetSpec(
        nodes=nodes,
        slos=slos,
        ability=quality.table("ability").numbers(),
        seen_noise=quality.number("seen_noise", 0.15),
        required_share=quality.number("required_share", 0.0),
        replicas=gateways.whole("replicas", 1, least=1),
        heartbeat_s=gateways.number("heartbeat_s", 1.0, above=0.0),
    )
    for table in (top, quality, gateways):
        table.done()
    if not nodes or sum(s.share for s in slos) <= 0.0:
        raise BadInput("a fleet needs a node and an SLO class with a share")
    return fleet


def _nodes(entry: Any) -> list[NodeSpec]:
    name = Table("node", entry).text("name")
    table = Table(f"node {name}", entry)
    table.has("name")
    count = table.whole("count", 1, least=1)
    spec = NodeSpec(
        name=name,
        tier=_tier(table),
        variant=table.text("variant"),
        slots=table.whole("slots", least=1),
        context_tokens=table.whole("context_tokens", least=1),
        prefill_tps=table.number("prefill_tps", above=0.0),
        prefill_chunk=table.whole("prefill_chunk", least=1),
        decode=_decode(table),
        cache_tokens=table.whole("cache_tokens", 0),
        region=table.text("region", ""),
        rtt_ms=table.pair("rtt_ms", (0.0, 0.0)),
        speed_noise=table.number("speed_noise", 0.0),
        cost_per_mtoken=table.number("cost_per_mtoken", 0.0),
        queue_limit=table.whole("queue_limit", 1 << 20),
        failures=tuple(_fault(table.where, each) for each in table.items("failures", ())),
    )
    table.done()
    return [replace(spec, name=f"{name}-{i}") for i in range(count)] if count > 1 else [spec]


def _tier(table: Table) -> Tier:
    word = table.text("tier")
    if word not in [tier.value for tier in Tier]:
        raise table.wrong("tier", f"must be one of {', '.join(tier.value for tier in Tier)}")
    return Tier(word)


def _decode(table: Table) -> tuple[tuple[int, float], ...]:
    points = sorted(table.as_pair("decode_tps", point) for point in table.items("decode_tps"))
    if not points or any(n < 1 or n != int(n) or tps <= 0.0 for n, tps in points):
        raise table.wrong("decode_tps", "must be [[sequences at once, tokens/s of each], ...], all above 0")
    return tuple((int(n), tps) for n, tps in points)


def _fault(node: str, entry: Any) -> Fault:
    table = Table(f"{node}: failures", entry)
    kind = table.text("kind")
    if kind not in FAULTS:
        raise table.wrong("kind", f"must be one of {', '.join(FAULTS)}")
    fault = Fault(table.number("at_s"), table.number("for_s"), kind, table.number("factor", 1.0))
    table.done()
    return fault


def _slo(entry: Any) -> Slo:
    name = Table("slo", entry).text("name")
    table = Table(f"slo {name}", entry)
    table.has("name")
    share = table.number("share", above=-1e-9)
    limits = [table.optional(key) for key in ("ttft_ms", "tpot_ms", "total_ms")]
    table.done()
    return Slo(name, share, *limits)
