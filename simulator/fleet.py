"""A fleet as a file says it: nodes, SLO classes, quality, gateways. See docs/simulator.md."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from simulator.tables import MOST, BadInput, Table
from tidegate.routing.domain import Tier

FAULTS = ("kill", "slow", "silent")
# Beyond these a file does not mean what it says, and a run would never end or leave what floats hold.
# Tokens per second, of prefill and of one stream:
SLOWEST_TPS, FASTEST_TPS = 1e-3, 1e9
# Sigma of a lognormal factor: at 3 one request in a hundred is a thousand times slower than usual.
MOST_NOISE = 3.0
# Times slower:
LEAST_FACTOR, MOST_FACTOR = 1e-3, 1e4
# P(good) is P(u < ability) with u in [0, 1]: above 1 is always good. Percentages are a mistake.
MOST_ABILITY = 10.0
MOST_NODES, MOST_REPLICAS, MOST_SHARE = 100_000, 1_000, 1e6


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
        """Seconds of one decode step; the time per step is linear between the points of the curve.

        Beyond the last point it goes on as before, but gets no shorter: it would be negative in the end.
        """
        low_n, low_s = self.decode[0][0], 1.0 / self.decode[0][1]
        slope = 0.0
        for n, tps in self.decode[1:]:
            slope = (1.0 / tps - low_s) / (n - low_n)
            if batch <= n:
                break
            low_n, low_s = n, 1.0 / tps
        else:
            slope = max(slope, 0.0)
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
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path}: not TOML: {error}") from error
    except RecursionError as error:
        raise BadInput(f"{path}: nested too deeply") from error
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
        ability=quality.table("ability").numbers(least=0.0, most=MOST_ABILITY),
        seen_noise=quality.number("seen_noise", 0.15, least=0.0),
        required_share=quality.number("required_share", 0.0, least=0.0, most=1.0),
        replicas=gateways.whole("replicas", 1, least=1, most=MOST_REPLICAS),
        heartbeat_s=gateways.number("heartbeat_s", 1.0, above=0.0),
    )
    for table in (top, quality, gateways):
        table.done()
    _must_fit_together(fleet)
    return fleet


def _must_fit_together(fleet: FleetSpec) -> None:
    """What no table shows by itself. Raises BadInput."""
    if not fleet.nodes:
        raise BadInput("a fleet needs a node")
    if not any(slo.share > 0.0 for slo in fleet.slos):
        raise BadInput("a fleet needs an SLO class with a share above 0")
    for what, names in (
        ("node", [spec.name for spec in fleet.nodes]),
        ("slo", [slo.name for slo in fleet.slos]),
    ):
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise BadInput(f"{what} {twice[0]}: name is that of another {what}")
    for spec in fleet.nodes if fleet.ability else ():
        if spec.variant not in fleet.ability:
            raise BadInput(f"fleet: quality: ability lacks {spec.variant}, the variant of node {spec.name}")


def _nodes(entry: Any) -> list[NodeSpec]:
    name = Table("node", entry).text("name")
    table = Table(f"node {name}", entry)
    table.has("name")
    count = table.whole("count", 1, least=1, most=MOST_NODES)
    spec = NodeSpec(
        name=name,
        tier=_tier(table),
        variant=table.text("variant"),
        slots=table.whole("slots", least=1),
        context_tokens=table.whole("context_tokens", least=1),
        prefill_tps=table.number("prefill_tps", least=SLOWEST_TPS, most=FASTEST_TPS),
        prefill_chunk=table.whole("prefill_chunk", least=1),
        decode=_decode(table),
        cache_tokens=table.whole("cache_tokens", 0),
        region=table.text("region", ""),
        rtt_ms=table.pair("rtt_ms", (0.0, 0.0), least=0.0),
        speed_noise=table.number("speed_noise", 0.0, least=0.0, most=MOST_NOISE),
        cost_per_mtoken=table.number("cost_per_mtoken", 0.0, least=0.0),
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
    if not points or any(not 1 <= n <= MOST or n != int(n) or tps <= 0.0 for n, tps in points):
        raise table.wrong("decode_tps", "must be [[sequences at once, tokens/s of each], ...], all above 0")
    for _, tps in points:
        table.as_number("decode_tps", tps, least=SLOWEST_TPS, most=FASTEST_TPS)
    for (n, _), (other, _) in pairwise(points):
        if n == other:
            raise table.wrong("decode_tps", f"has two points for {n:g} sequences at once")
    return tuple((int(n), tps) for n, tps in points)


def _fault(node: str, entry: Any) -> Fault:
    table = Table(f"{node}: failures", entry)
    kind = table.text("kind")
    if kind not in FAULTS:
        raise table.wrong("kind", f"must be one of {', '.join(FAULTS)}")
    fault = Fault(
        at_s=table.number("at_s", least=0.0),
        for_s=table.number("for_s", least=0.0),
        kind=kind,
        factor=table.number("factor", 1.0, least=LEAST_FACTOR, most=MOST_FACTOR),
    )
    table.done()
    return fault


def _slo(entry: Any) -> Slo:
    name = Table("slo", entry).text("name")
    table = Table(f"slo {name}", entry)
    table.has("name")
    share = table.number("share", least=0.0, most=MOST_SHARE)
    limits = [table.optional(key, above=0.0) for key in ("ttft_ms", "tpot_ms", "total_ms")]
    table.done()
    return Slo(name, share, *limits)
