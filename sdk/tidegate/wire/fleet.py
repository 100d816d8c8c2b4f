"""Nodes and models as a client sees them, and their conversions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import Explanation, Health, NodeState, Power, Route, Speeds, Tier, Variant
from tidegate.wire import codec, common

HEALTHS: Mapping[Health, pb.NodeHealth.ValueType] = {
    Health.READY: pb.NODE_HEALTH_READY,
    Health.NOT_READY: pb.NODE_HEALTH_NOT_READY,
    Health.SUSPECT: pb.NODE_HEALTH_SUSPECT,
    Health.DRAINING: pb.NODE_HEALTH_DRAINING,
    Health.STALLED: pb.NODE_HEALTH_STALLED,
}
_HEALTHS_BACK: Mapping[int, Health] = {v: k for k, v in HEALTHS.items()}


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One node as a gateway knows it. `rtt_ms` is smoothed, `silent_ms` the time since it was heard from.

    `wake_ms` is how long its model would take to be loaded, 0 where it is.
    `queued` counts what waits there and what was sent since the node's last heartbeat; `trouble` says why its
    engine takes no work.
    """

    node_id: str
    name: str
    tier: Tier
    region: str
    health: Health
    variants: tuple[Variant, ...]
    slots: int
    running: int
    queued: int
    rtt_ms: float
    speeds: Speeds
    hardware_class: str = ""
    linked_here: bool = True
    silent_ms: float = 0.0
    power: Power | None = None
    wake_ms: float = 0.0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model that can be asked for; `ready_nodes` can serve it now."""

    name: str
    aliases: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    ready_nodes: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What Generate would do now. `route` is None when the request would be refused, `refusal` says why."""

    route: Route | None
    explanation: Explanation
    refusal: str = ""


def node_info(state: NodeState, *, silent_ms: float = 0.0) -> NodeInfo:
    """The client's view of a node in a snapshot."""
    announcement = state.announcement
    return NodeInfo(
        node_id=announcement.node_id,
        name=announcement.name,
        tier=state.binding.tier,
        region=state.binding.region,
        health=state.health,
        variants=announcement.variants,
        slots=state.slots,
        running=state.load.running,
        queued=state.load.queued + state.in_flight.requests,
        rtt_ms=state.rtt_ms,
        speeds=state.speeds,
        hardware_class=announcement.hardware_class,
        linked_here=state.linked_here,
        silent_ms=silent_ms,
        power=state.load.power,
        wake_ms=state.load.wake_ms,
        trouble=state.load.trouble,
    )


def encode_node(node: NodeInfo) -> pb.Node:
    return pb.Node(
        node_id=node.node_id,
        name=node.name,
        tier=common.TIERS[node.tier],
        region=node.region,
        health=HEALTHS[node.health],
        variants=[common.encode_variant(v) for v in node.variants],
        slots=node.slots,
        running=node.running,
        queued=node.queued,
        rtt_ms=node.rtt_ms,
        speeds=common.encode_speeds(node.speeds),
        hardware_class=node.hardware_class,
        linked_here=node.linked_here,
        silent_ms=node.silent_ms,
        power=common.encode_power(node.power),
        wake_ms=node.wake_ms,
        trouble=node.trouble,
    )


def decode_node(node: pb.Node) -> NodeInfo:
    return NodeInfo(
        node_id=node.node_id,
        name=node.name,
        tier=common.decode_tier(node.tier, "node.tier"),
        region=node.region,
        health=common.decode_enum(_HEALTHS_BACK, node.health, "node.health"),
        variants=tuple(
            common.decode_variant(v, f"node.variants[{index}]") for index, v in enumerate(node.variants)
        ),
        slots=node.slots,
        running=node.running,
        queued=node.queued,
        rtt_ms=node.rtt_ms,
        speeds=common.decode_speeds(node.speeds),
        hardware_class=node.hardware_class,
        linked_here=node.linked_here,
        silent_ms=node.silent_ms,
        power=common.decode_power(node.power) if node.HasField("power") else None,
        wake_ms=node.wake_ms,
        trouble=node.trouble,
    )


def encode_model(model: ModelInfo) -> pb.Model:
    return pb.Model(
        name=model.name,
        aliases=model.aliases,
        variants=[common.encode_variant(v) for v in model.variants],
        ready_nodes=model.ready_nodes,
    )


def decode_model(model: pb.Model) -> ModelInfo:
    return ModelInfo(
        name=model.name,
        aliases=tuple(model.aliases),
        variants=tuple(
            common.decode_variant(v, f"model.variants[{index}]") for index, v in enumerate(model.variants)
        ),
        ready_nodes=model.ready_nodes,
    )


def encode_decision(decision: Decision) -> pb.ExplainResponse:
    return pb.ExplainResponse(
        route=None if decision.route is None else codec.encode_route(decision.route),
        explanation=codec.encode_explanation(decision.explanation),
        refusal=decision.refusal,
    )


def decode_decision(response: pb.ExplainResponse) -> Decision:
    return Decision(
        route=codec.decode_route(response.route) if response.HasField("route") else None,
        explanation=codec.decode_explanation(response.explanation),
        refusal=response.refusal,
    )
