"""Small builders for routing tests: a fleet in a few words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tidegate.routing.domain import (
    Analysis,
    Announcement,
    Binding,
    Budget,
    ClassRule,
    Health,
    InFlight,
    NodeLoad,
    NodeState,
    OnMiss,
    Placement,
    ReplayClass,
    RouteQuery,
    SessionHint,
    Snapshot,
    Speeds,
    Tier,
    Variant,
)
from tidegate.routing.observation import Observation, Stage
from tidegate.routing.prediction import Prediction

SMALL = Variant("smol", "d-small", "Q4_0", 2048, 13.8, frozenset({"token_ids"}), ("small",))
LARGE = Variant("smol", "d-large", "Q8_0", 8192, 11.3, frozenset({"token_ids", "logprobs"}), ("large",))
EDGE_SPEEDS = Speeds(700.0, ((1, 150.0), (2, 110.0), (4, 60.0)))
CLOUD_SPEEDS = Speeds(8000.0, ((1, 60.0), (8, 50.0), (32, 30.0)))
RESTRICTED = ClassRule(tiers=frozenset({"edge"}), trust=frozenset({"own"}))


def node(
    name: str = "edge-0",
    *,
    tier: Tier = Tier.EDGE,
    variants: tuple[Variant, ...] | None = None,
    load: NodeLoad | None = None,
    in_flight: InFlight | None = None,
    health: Health = Health.READY,
    rtt_ms: float | None = None,
    slots: int = 4,
    speeds: Speeds | None = None,
    cost: float | None = None,
    region: str = "site-a",
    trust: str = "own",
    tenants: frozenset[str] = frozenset(),
    linked: bool = True,
    blocks: frozenset[bytes] = frozenset(),
) -> NodeState:
    """An idle healthy edge node unless told otherwise; `tier=CLOUD` gives cloud defaults."""
    edge = tier is Tier.EDGE
    return NodeState(
        Announcement(
            node_id=f"id-{name}",
            boot_id="boot",
            name=name,
            variants=variants if variants is not None else ((SMALL,) if edge else (LARGE,)),
            slots=slots,
            queue_limit=16,
            build="test",
            replay_class=ReplayClass.TOKENS,
            replay_digest="replay",
            hardware_class="cpu" if edge else "gpu",
            speeds=speeds or (EDGE_SPEEDS if edge else CLOUD_SPEEDS),
        ),
        Binding(tier, region, trust, cost if cost is not None else (0.0 if edge else 0.6), tenants),
        load or NodeLoad(),
        health,
        rtt_ms if rtt_ms is not None else (5.0 if edge else 60.0),
        linked,
        in_flight or InFlight(),
        blocks,
    )


def cloud(name: str = "cloud-0", **changes: object) -> NodeState:
    return node(name, tier=Tier.CLOUD, trust="rented", region="dc-1", **changes)  # type: ignore[arg-type]


def fleet(*nodes: NodeState) -> Snapshot:
    return Snapshot(nodes, {n.node_id: n for n in nodes})


def query(
    *,
    model: str = "auto",
    prompt_tokens: int = 200,
    difficulty: float = 0.5,
    hashes: tuple[bytes, ...] = (),
    max_tokens: int = 64,
    budget: Budget | None = None,
    target: float = 0.9,
    min_p_good: float = 0.0,
    placement: Placement = Placement.ANY,
    rule: ClassRule | None = None,
    on_miss: OnMiss = OnMiss.BEST_EFFORT,
    session: SessionHint | None = None,
    needs: frozenset[str] = frozenset(),
    excluded: frozenset[str] = frozenset(),
    elapsed_ms: float = 0.0,
    tenant: str = "default",
) -> RouteQuery:
    return RouteQuery(
        model,
        Analysis(prompt_tokens, lambda: difficulty, hashes),
        max_tokens,
        budget or Budget(),
        target,
        min_p_good,
        placement,
        rule or ClassRule(),
        on_miss,
        session,
        needs,
        excluded,
        0,
        elapsed_ms,
        tenant,
    )


def always(value: float) -> Callable[[], float]:
    return lambda: value


def observed(
    prediction: Prediction,
    *,
    name: str = "edge-0",
    boot: str = "boot",
    ttft_times: float | None = None,
    tpot_times: float | None = None,
    queue_times: float = 1.0,
    cached_tokens: int = 0,
    prompt_tokens: int = 200,
    output_tokens: int = 32,
    stage: Stage = Stage.ENDED,
    **changes: object,
) -> Observation:
    """What an attempt teaches whose node took so many times what its report lets expect, with its stamps."""
    p = prediction
    prefill_ms = sum(p.prefill_parts) * (1.0 if ttft_times is None else ttft_times)
    queue_ms = p.queue_parts[0] * queue_times + p.queue_parts[1]
    seen = Observation(
        node_id=f"id-{name}",
        variant_digest=SMALL.digest,
        model=SMALL.model,
        hardware_class="cpu",
        boot_id=boot,
        prediction=p,
        stage=stage,
        actual_ttft_ms=None if ttft_times is None else p.rtt_ms + queue_ms + prefill_ms,
        actual_tpot_ms=None if tpot_times is None else sum(p.step_parts) * tpot_times,
        queue_ms=queue_ms,
        prefill_ms=prefill_ms,
        cached_tokens=cached_tokens,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        max_tokens=64,
    )
    return replace(seen, **changes)  # type: ignore[arg-type]
